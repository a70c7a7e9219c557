// The Socket.IO server a developer would write: a room, the keys of each socket, a clear per key when it goes.
import { Server } from "socket.io";

const io = new Server(Number(process.argv[2]), { transports: ["websocket"], serveClient: false });

io.on("connection", (socket) => {
  const keys = new Set();
  const clientId = `specific.inmemory!${socket.id}`.slice(0, 30); // as long as a channel name
  const tell = (topic, frame) => io.to(topic).emit("e", frame);
  let room;

  socket.on("subscribe", ({ topic }, done) => {
    socket.join(topic);
    done();
  });
  socket.on("set", ({ topic, key, payload }, done) => {
    room = topic;
    keys.add(key);
    tell(topic, { _orama: "ephemeral.set", topic, key, client_id: clientId, payload });
    done();
  });
  socket.on("disconnect", () => {
    for (const key of keys) tell(room, { _orama: "ephemeral.clear", topic: room, key, client_id: clientId, reason: "disconnect" });
  });
});
