// Where others point. Positions come some 20 times a second; between them a cursor glides, as its hand did.

import { element, named, tint } from "./people.js";

const GLIDE = 55; // ms in which a cursor makes 63 % of the way that is left
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Cursors on a stage, in parts of its width and height, so that windows of any size agree. */
export class Cursors {
  #stage;
  #shape;
  #layer;
  #cursors = new Map();
  #frame = 0;
  #last = 0;

  constructor(stage, layer, shape) {
    [this.#stage, this.#layer, this.#shape] = [stage, layer, shape];
    new ResizeObserver(() => this.#moveAll()).observe(stage);
  }

  /** Show whose cursor is where, or hide it. `at` is what somebody sent: it need not be a position. */
  show(key, at, person) {
    const there = [at?.x, at?.y].every((part) => Number.isFinite(part) && part >= 0 && part <= 1);
    const known = this.#cursors.get(key);
    if (!there || !person) {
      known?.drawn.remove();
      this.#cursors.delete(key);
      return;
    }
    const cursor = known ?? this.#make(at);
    this.#cursors.set(key, cursor);
    cursor.to = at;
    cursor.label.textContent = person.name;
    tint(cursor.drawn, person.color);
    if (still.matches) cursor.at = at;
    this.#move(cursor);
    this.#glide();
  }

  #make(at) {
    const drawn = element("div", "cursor", this.#shape.content.cloneNode(true));
    const label = named("", "label");
    drawn.append(label);
    this.#layer.append(drawn);
    return { drawn, label, at, to: at };
  }

  #glide() {
    if (this.#frame) return;
    this.#last = performance.now();
    const step = (now) => {
      const part = 1 - Math.exp(-Math.max(0, now - this.#last) / GLIDE);
      this.#last = now;
      let moving = false;
      for (const cursor of this.#cursors.values()) moving = this.#step(cursor, part) || moving;
      this.#frame = moving ? requestAnimationFrame(step) : 0;
    };
    this.#frame = requestAnimationFrame(step);
  }

  /** Whether there is still some way to go. */
  #step(cursor, part) {
    const [x, y] = ["x", "y"].map((axis) => cursor.to[axis] - cursor.at[axis]);
    if (x === 0 && y === 0) return false;
    const close = Math.abs(x) < 0.0005 && Math.abs(y) < 0.0005;
    cursor.at = close ? cursor.to : { x: cursor.at.x + x * part, y: cursor.at.y + y * part };
    this.#move(cursor);
    return !close;
  }

  #moveAll() {
    for (const cursor of this.#cursors.values()) this.#move(cursor);
  }

  #move({ drawn, label, at }) {
    const { clientWidth: width, clientHeight: height } = this.#stage;
    drawn.style.transform = `translate(${at.x * width}px, ${at.y * height}px)`;
    drawn.classList.toggle("flipped", (1 - at.x) * width < label.offsetWidth + 24);
    drawn.classList.toggle("above", (1 - at.y) * height < 56);
  }
}
