/**
 * The item of a list. Its text is nothing but text.
 * @param {{ name: string, color?: unknown }} person `color`: a hue; without one, their name has one
 * @param {boolean} mine
 */
export function face({ name, color }: {
    name: string;
    color?: unknown;
}, mine: boolean): HTMLElement & {
    className: string;
};
/**
 * What a person looks like in `<ephemeral-presence>`: initials in a colour, and the name.
 * @module
 */
export const style: CSSStyleSheet;
