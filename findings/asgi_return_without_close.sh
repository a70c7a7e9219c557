#!/usr/bin/env bash
# Seen on 2026-11-30 with uvicorn 0.54.0 and daphne 4.2.3 (websockets 15.0.1 as the client): an ASGI application that
# accepts a WebSocket and returns. uvicorn closes the socket at once, daphne leaves it open (3 s were waited for).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check uvicorn==0.54.0 daphne==4.2.3 websockets==15.0.1
cd "$folder"
cat > application.py <<'PYTHON'
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
PYTHON
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio, socket, subprocess, sys
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
async def sees(port):
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close(); break
        except OSError:
            await asyncio.sleep(0.1)
    async with connect(f"ws://127.0.0.1:{port}/", close_timeout=0.5) as client:
        try:
            await asyncio.wait_for(client.recv(), 3)
        except ConnectionClosed:
            return "closed"
        except TimeoutError:
            return "open"
def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); return probe.getsockname()[1]
seen = {}
for name in ("uvicorn", "daphne"):
    port = free()
    server = subprocess.Popen([sys.executable, "-m", name, *(["--port"] if name == "uvicorn" else ["-p"]), str(port), "application:app"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        seen[name] = asyncio.run(sees(port))
    finally:
        server.kill(); server.wait()
print(seen)
sys.exit(seen != {"uvicorn": "closed", "daphne": "open"})
PYTHON
