// The least a server can do: on the first set it writes ready-made bytes to every socket, as fast as they take them.
// What the load generator counts here is what it can count at most.
import { WebSocketServer } from "ws";

const text = JSON.stringify({
  _orama: "ephemeral.set",
  topic: "room",
  key: "cursor:123",
  client_id: "specific.inmemory!123456789012",
  payload: Buffer.from(JSON.stringify({ x: 0.4321, y: 0.1234 })).toString("base64"),
});
const frame = Buffer.concat([Buffer.from([0x81, 126, text.length >> 8, text.length & 255]), Buffer.from(text)]);
const chunk = Buffer.concat(Array(4).fill(frame));
const sockets = new Set();
let blasting = false;

function blast() {
  for (const socket of sockets) if (socket.writableLength < 16_384) socket.write(chunk);
  setImmediate(blast);
}

new WebSocketServer({ port: Number(process.argv[2]), host: "127.0.0.1", perMessageDeflate: false }).on("connection", (ws, request) => {
  ws.on("message", (data) => {
    if (String(data).includes("ephemeral.subscribe")) {
      sockets.add(request.socket);
      ws.send('{"_orama":"ephemeral.snapshot","topic":"room","entries":[]}');
    } else if (!blasting) {
      blasting = true;
      blast();
    }
  });
  ws.on("close", () => sockets.delete(request.socket));
  ws.on("error", () => {});
});
