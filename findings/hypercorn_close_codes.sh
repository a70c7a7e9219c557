#!/usr/bin/env bash
# Seen on 2026-11-30 with hypercorn 0.18.0 (websockets 15.0.1 as the client): the application hears of a close with 1000,
# 1001 and 4001 alike as `websocket.disconnect` with the code 1006.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check hypercorn==0.18.0 websockets==15.0.1
cd "$folder"
cat > application.py <<'PYTHON'
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] != "websocket.disconnect":
        pass
    with open("codes", "a") as file:
        print(event.get("code"), file=file, flush=True)
PYTHON
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio, os, socket, subprocess, sys, time
from websockets.asyncio.client import connect
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
server = subprocess.Popen([sys.executable, "-m", "hypercorn", "--workers", "0", "-b", f"127.0.0.1:{port}", "application:app"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
async def close(code):
    async with connect(f"ws://127.0.0.1:{port}/") as client:
        await client.close(code)
try:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close(); break
        except OSError:
            time.sleep(0.1)
    for number, code in enumerate((1000, 1001, 4001), 1):
        asyncio.run(close(code))
        for _ in range(100):
            if os.path.exists("codes") and len(open("codes").read().split()) == number:
                break
            time.sleep(0.1)
    codes = open("codes").read().split()
    print("closed with 1000, 1001, 4001; the application heard", codes)
    sys.exit(codes != ["1006"] * 3)
finally:
    server.kill(); server.wait()
PYTHON
