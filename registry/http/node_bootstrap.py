#!/usr/bin/env python3
"""Joins this machine to the network with the standard library alone, of Python 3.8 or newer.

    curl -s http://REGISTRY:9205/bootstrap/node_bootstrap.py | NODE_REGISTRY_URL=http://REGISTRY:9205 python3 -

Settings, all in the environment: NODE_REGISTRY_URL (several with commas: when one gives no answer, the next is asked),
NODE_ROLE, NODE_LABELS (with commas), NODE_NAME, NODE_TYPE, NODE_REGION, NODE_ADVERTISE_ADDR, NODE_API_KEY,
NODE_JOIN_TOKEN, NODE_AGENTS, CA_CERT, NODE_CERT, NODE_KEY, OLLAMA_BASE_URL, HEARTBEAT_INTERVAL (seconds), DAGI_HOME.
The node's id and key are kept in ~/.dagi.
"""

import contextlib
import csv
import glob
import hashlib
import http.client
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

SETTINGS = os.environ
GB = 2**30
MAX_ANSWER_BYTES = 16 * 2**20
MAX_WAIT_S = 60.0
SILENCE_S = 2.0  # a registry that has not answered by then is passed over
FINAL = (200, 400, 404, 409, 413, 415, 422)  # other answers: the next registry may know better
MODELS_TOLD = 200


def tell(line, to=None):
    """One line for whoever watches; nobody has to."""
    with contextlib.suppress(OSError):
        print(line, file=to or sys.stdout, flush=True)


def listed(name):
    """A setting that is a list with commas."""
    return [part.strip() for part in SETTINGS.get(name, "").split(",") if part.strip()]


# asking


class Straight(urllib.request.HTTPRedirectHandler):
    """Redirects are answers: a key goes to whom it was meant for."""

    def redirect_request(self, *_):
        return None


NO_PROXY = urllib.request.ProxyHandler({})
PLAIN = urllib.request.build_opener(NO_PROXY, Straight)  # for what is on this machine


def opener():
    """What requests to registries go through, with the authority and certificate that were set."""
    context = ssl.create_default_context(cafile=SETTINGS.get("CA_CERT") or None)
    with contextlib.suppress(AttributeError, ValueError):  # a Python built without it dials as it can
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    if SETTINGS.get("NODE_CERT"):
        context.load_cert_chain(SETTINGS["NODE_CERT"], SETTINGS.get("NODE_KEY") or None)
    return urllib.request.build_opener(NO_PROXY, Straight, urllib.request.HTTPSHandler(context=context))


def stamps():
    """What is another when a certificate's file was replaced."""
    found = []
    for name in ("CA_CERT", "NODE_CERT", "NODE_KEY"):
        with contextlib.suppress(OSError):
            told = os.stat(SETTINGS.get(name) or "")
            found.append((name, told.st_mtime_ns, told.st_size, told.st_ino))
    return found


def call(base, method, path, body=None, key=None, through=None):
    """(status, answer, Retry-After); status None when there was no answer, or none that is JSON of an object."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(base + path, method=method, data=data)
        request.add_header("Content-Type", "application/json")
        if key:
            request.add_header("Authorization", "Bearer " + key)
        with (through or PLAIN).open(request, timeout=SILENCE_S) as answer:
            status, found = answer.status, json.loads(answer.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            patience = error.headers.get("Retry-After") or ""
            return error.code, told(error), min(float(patience), 300.0) if patience.isdecimal() else None
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        if isinstance(error, json.JSONDecodeError):
            reason = "no JSON in the answer"
        return None, {"detail": "no registry answers at %s: %s" % (base, reason)}, None
    if not isinstance(found, dict):
        return None, {"detail": "what answers at %s is not a registry" % base}, None
    return status, found, None


def told(error):
    """What an error's answer says, short and printable: {detail, code}."""
    try:
        found = json.loads(error.read(4096))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        found = None
    found = found if isinstance(found, dict) else {}
    text = "".join(c if c.isprintable() else " " for c in str(found.get("detail") or error)[:300])
    return {"detail": text, "code": found.get("code")}


def certified_id():
    """The node that NODE_CERT names by a URI (its length stands before it), or None."""
    try:
        with open(SETTINGS.get("NODE_CERT") or os.devnull, encoding="ascii", errors="replace") as file:
            pem = re.search("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", file.read(65536), re.DOTALL)
        der = ssl.PEM_cert_to_DER_cert(pem.group(0)) if pem else b""
    except (OSError, ValueError):
        return None
    at = der.find(b"urn:dagi:node:")
    name = der[at + 14 : at + der[at - 1]] if at > 0 else b""
    return name.decode() if re.match(rb"[A-Za-z0-9._:-]{1,241}\Z", name) else None


def is_given():
    """Whether some operator has said which node this is: then it stays that one."""
    return bool(SETTINGS.get("NODE_API_KEY")) or certified_id() is not None


class Registries:
    """The list; a request goes to the one in use, and on to the next where that gives no answer that counts."""

    def __init__(self):
        self.urls = [url.rstrip("/") for url in listed("NODE_REGISTRY_URL")] or ["http://127.0.0.1:9205"]
        self.stamps, self.opener = stamps(), opener()
        self.rests = {}  # url: until when, as it asked for patience

    def call(self, method, path, body, key):
        """(status, answer, seconds to wait first) of the first that answers, else of the last."""
        found, why, now = (None, {}, None), [], stamps()
        if now != self.stamps:  # certificates were replaced; what cannot be used, or not yet, is left
            with contextlib.suppress(OSError, ValueError):
                self.opener, self.stamps = opener(), now
        for url in list(self.urls):
            if self.rests.get(url, 0) > time.monotonic():
                continue
            found = call(url, method, path, body, key, through=self.opener)
            if found[0] in FINAL:
                if self.urls[0] != url and why:
                    tell("%s is asked from now on: %s" % (url, "; ".join(why)))
                while self.urls[0] != url:
                    self.urls.append(self.urls.pop(0))
                return found
            why.append(found[1]["detail"])
            if found[2] is not None:
                self.rests[url] = time.monotonic() + found[2]
        waits = [until_s - time.monotonic() for until_s in (self.rests.get(url, 0) for url in self.urls)]
        wait_s = min(waits) if min(waits) > 0 else None
        why = "; ".join(why) or "all registries asked for patience"
        return found[0], {"detail": why, "code": found[1].get("code")}, wait_s


# what this machine has


def text_of(path, most=16384):
    """A small file's text, or an empty string."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(most).strip("\0 \n")
    except OSError:
        return ""


def output(*command):
    """What a program prints, or an empty string; three seconds at most."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=3)
        return done.stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""


def number(text, factor=1.0):
    """A number in some text, times that; None for [N/A] and the like."""
    try:
        value = float(text) * factor
    except (TypeError, ValueError):
        return None
    return round(value, 2) if 0 <= value < 1e12 else None


def cpu_model():
    """The processor's name."""
    if sys.platform == "darwin":
        return output("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string").strip() or None
    named = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(\S.*)$", text_of("/proc/cpuinfo"), re.MULTILINE)
    return (named.group(1)[:255] if named else text_of("/proc/device-tree/model")) or platform.processor() or None


def ram_gb():
    """The machine's memory, or None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB, 2)
    except (ValueError, OSError, AttributeError):
        return None


def nvidia():
    """NVIDIA's GPUs by nvidia-smi, else by the driver's own files."""
    fields = "name,uuid,memory.total,memory.free,utilization.gpu"
    tool = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"
    found = []
    for row in csv.reader(output(tool, "--query-gpu=" + fields, "--format=csv,noheader,nounits").splitlines()):
        if len(row) == 5 and row[1].strip().startswith("GPU-"):
            name, identity, total, free, busy = (cell.strip() for cell in row)
            total_gb, unified = number(total, 1 / 1024), number(total) is None  # it shares the system's memory
            found.append(gpu("nvidia", name, identity, ram_gb() if unified else total_gb, number(free, 1 / 1024),
                             number(busy), unified))  # fmt: skip
    for path in () if found else sorted(glob.glob("/proc/driver/nvidia/gpus/*/information")):
        facts = dict(re.findall(r"^(Model|GPU UUID):\s*(\S.*)$", text_of(path), re.MULTILINE))
        found.append(gpu("nvidia", facts.get("Model"), facts.get("GPU UUID"), None, None, None, None))
    return found


def amd():
    """AMD's GPUs by sysfs."""
    found = []
    for device in sorted(glob.glob("/sys/class/drm/card[0-9]*/device")):
        if text_of(device + "/vendor") != "0x1002" or "-" in device.split("/")[4]:
            continue
        total, used = (number(text_of(device + "/mem_info_vram_" + what), 1 / GB) for what in ("total", "used"))
        serial = text_of(device + "/unique_id")
        free = round(total - used, 2) if total is not None and used is not None else None
        name = text_of(device + "/product_name") or "AMD " + text_of(device + "/device")
        busy = number(text_of(device + "/gpu_busy_percent"))
        found.append(gpu("amd", name, "GPU-" + serial if serial else None, total, free, busy, False))
    return found


def gpu(vendor, name, identity, total_gb, free_gb, busy, unified):
    """One GPU as registries know them; what is not known is null."""
    return {
        "name": name, "vendor": vendor, "uuid": identity, "vram_gb": total_gb, "vram_free_gb": free_gb,
        "utilization_percent": busy, "unified": unified,
    }  # fmt: skip


def gpus():
    """All GPUs."""
    if sys.platform == "darwin":
        name = cpu_model() if platform.machine() == "arm64" else None
        return [gpu("apple", name, None, ram_gb(), None, None, True)] if name else []
    return nvidia() + amd()


def ollama():
    """Ollama and its models; those of a cloud are not ours to offer."""
    base = SETTINGS.get("OLLAMA_BASE_URL") or SETTINGS.get("OLLAMA_HOST") or "127.0.0.1:11434"
    base = base.rstrip("/") if "://" in base else "http://" + base.rstrip("/")
    base = base.replace("://0.0.0.0", "://127.0.0.1").replace("://[::]", "://127.0.0.1")
    if urllib.parse.urlsplit(base).netloc.count(":") == 0 and base.startswith("http://"):
        base += ":11434"
    status, tags, _ = call(base, "GET", "/api/tags")
    if status != 200 or not isinstance(tags.get("models"), list):
        return {"available": False, "models": [], "reason": "nothing answers as Ollama at " + base}
    version, (asked, running, _) = call(base, "GET", "/api/version")[1], call(base, "GET", "/api/ps")
    loaded = running["models"] if isinstance(running.get("models"), list) else []
    live = {m["name"]: m for m in loaded if isinstance(m, dict) and short(m.get("name"))}
    found = [m for m in tags["models"] if isinstance(m, dict) and short(m.get("name"))]
    local = [m for m in found if not m.get("remote_host")]
    models = [model(m, live.get(m["name"]) if asked == 200 else None, asked == 200) for m in local]
    models.sort(key=lambda m: not m["loaded"])
    return {"available": True, "version": short(version.get("version")), "models": models[:MODELS_TOLD]}


def model(found, live, is_known):
    """One model: installed, and loaded or not."""
    details = found.get("details") if isinstance(found.get("details"), dict) else {}
    live = live or {}
    facts = {
        "name": found["name"], "installed": True, "loaded": bool(live) if is_known else None,
        "digest": short(found.get("digest")), "size_gb": number(found.get("size"), 1 / GB),
        "family": short(details.get("family")), "parameter_size": short(details.get("parameter_size")),
        "quantization": short(details.get("quantization_level")), "vram_gb": number(live.get("size_vram"), 1 / GB),
        "context_length": number(live.get("context_length")),
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value is not None or name == "loaded"}


def short(text):
    """A short printable text, or None."""
    return text if isinstance(text, str) and 0 < len(text) < 256 and text.isprintable() else None


def capabilities():
    """What this machine has; what is not known is null."""
    cards = gpus()
    engine = ollama()
    return {
        "system": {
            "hostname": socket.gethostname(), "os": platform.system(), "os_version": platform.release(),
            "architecture": platform.machine(), "cpu_model": cpu_model(), "cpu_cores": os.cpu_count(),
            "ram_gb": ram_gb(), "disk_gb": round(shutil.disk_usage("/").total / GB, 2),
        },
        "gpu": {"available": bool(cards), "gpus": cards, "count": len(cards)},
        "ollama": engine,
        "services": ["ollama"] if engine["available"] else [],
        "features": sorted({"nvidia": "cuda", "apple": "metal"}[v] for v in {c["vendor"] for c in cards} - {"amd"}),
    }  # fmt: skip


# what it measures


class Meter(threading.Thread):
    """Measures apart from heartbeats, which a program that hangs must not make late."""

    def __init__(self):
        super().__init__(daemon=True)
        self.interval_s, self.latest, self.models, self.before = 30.0, {}, None, None

    def run(self):
        """Measure for as long as the program runs."""
        while True:
            with contextlib.suppress(Exception):  # what cannot be measured is not told
                self.latest = self.measure()
            time.sleep(self.interval_s)

    def measure(self):
        """The metrics of a heartbeat; what cannot be measured is null."""
        disk, memory, engine, cards = shutil.disk_usage("/"), memory_gb(), ollama(), gpus()
        busy = [card["utilization_percent"] for card in cards if card["utilization_percent"] is not None]
        self.models = sorted(m["name"] for m in engine["models"]) if engine["available"] else self.models
        states = [{"engine": "ollama", "name": m["name"], "loaded": m["loaded"]} for m in engine["models"]]
        return {
            "cpu_percent": self.cpu_percent(),
            "memory_percent": round(100 * memory[0] / memory[1], 1) if memory else None,
            "ram_used_gb": memory[0] if memory else None,
            "disk_percent": round(100 * disk.used / disk.total, 1), "disk_used_gb": round(disk.used / GB, 2),
            "gpu_percent": max(busy) if busy else None, "gpus": cards,
            "services": ["ollama"] if engine["available"] else [], "models": states[:128],
            "agent_count": agent_count(),
        }  # fmt: skip

    def cpu_percent(self):
        """How busy the processors were since the last time, else the load as a share of them."""
        ticks = [int(n) for n in text_of("/proc/stat").split("\n")[0].split()[1:9]]
        if len(ticks) < 5:
            with contextlib.suppress(OSError, AttributeError):
                return round(min(100.0, 100 * os.getloadavg()[0] / (os.cpu_count() or 1)), 1)
            return None
        now, before = (sum(ticks) - ticks[3] - ticks[4], sum(ticks)), self.before or (0, 0)  # first: since the start
        self.before = now
        passed = now[1] - before[1]
        return round(100 * min(max((now[0] - before[0]) / passed, 0), 1), 1) if passed > 0 else None


def memory_gb():
    """(used, all of it), or None where the system does not tell."""
    told_kib = re.findall(r"^(Mem\w+):\s+(\d+) kB", text_of("/proc/meminfo"), re.MULTILINE)
    kib = {name: int(size) for name, size in told_kib}
    if not kib.get("MemTotal") or "MemAvailable" not in kib:
        return None
    return round((kib["MemTotal"] - kib["MemAvailable"]) / 2**20, 2), kib["MemTotal"] / 2**20


def agent_count():
    """NODE_AGENTS: a number, or a file or URL that holds a JSON list; None where it is not known."""
    source = SETTINGS.get("NODE_AGENTS", "")
    if re.match("[0-9]{1,9}$", source):
        return int(source)
    try:
        if source.startswith(("http://", "https://")):
            with PLAIN.open(source, timeout=SILENCE_S) as answer:
                found = json.loads(answer.read(2**20))
        else:
            found = json.loads(text_of(os.path.expanduser(source), 2**20))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return None
    return len(found) if isinstance(found, list) else None


# who it is


def home():
    """Where the identity is kept."""
    return os.path.expanduser(SETTINGS.get("DAGI_HOME") or os.path.join("~", ".dagi"))


def kept(name):
    """What an earlier run kept, or an empty string. Raises OSError for what is there and may not be read."""
    try:
        with open(os.path.normpath(os.path.join(home(), name)), errors="replace") as file:
            return file.read(65536).strip()
    except FileNotFoundError:
        return ""


def locked():
    """Wait until no other agent runs for this home, and keep others away; where that cannot be known, go on."""
    try:
        import fcntl  # not on Windows

        os.makedirs(home(), mode=0o700, exist_ok=True)
        handle, waits = os.open(home(), os.O_RDONLY), False
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    tell("another agent runs for %s: waiting for it to end; another node needs a DAGI_HOME" % home())
                waits = True
                time.sleep(1)
    except (ImportError, OSError):
        return None


def machine_id():
    """A keyed hash that is the same for every node of this machine, or None; in a container it would be the image's."""
    if any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))) or "KUBERNETES_SERVICE_HOST" in SETTINGS:
        return None
    found = [text_of("/etc/machine-id"), text_of("/var/lib/dbus/machine-id")]
    raw = next((text for text in found if re.match("[0-9a-fA-F]{32}$", text)), None)
    if raw is None and sys.platform == "darwin":
        told_by = output("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
        named = re.search('"IOPlatformUUID" = "([^"]+)"', told_by)
        raw = named.group(1) if named else None
    return hashlib.blake2b(raw.encode(), digest_size=16, key=b"dagi-machine-id").hexdigest() if raw else None


def new_id():
    """An id that no other node has."""
    host = re.sub("[^a-z0-9._-]", "-", socket.gethostname().split(".")[0].lower())[:200] or "unnamed"
    return "node-%s-%s" % (host, uuid.uuid4().hex[:8])


class Node:
    """This machine's node: who it is, and what it asks of registries."""

    def __init__(self):
        self.registries, self.meter, self.instance, self.machine = Registries(), Meter(), uuid.uuid4().hex, machine_id()
        self.key = self.token = self.copied_key = self.replaced_at_s = self.models = None
        self.interval_s, self.registered, self.may_keep, self.complained = 30.0, False, True, False
        try:
            self.id = self.kept_id()
            found = json.loads(kept("credentials.json") or "{}")
            if found.get("node_id") == self.id:
                self.key, self.token = found.get("api_key"), found.get("token")
                made_on = found.get("machine_id")
                if made_on and self.machine and made_on != self.machine and not is_given():
                    self.become_another("this home is a copy of another machine's, which is %s" % self.id)
        except OSError as error:  # another user's, who may need it: it is not replaced
            self.id, self.may_keep = certified_id() or new_id(), False
            self.complain(error)
        except (ValueError, AttributeError, RecursionError):
            pass
        self.keep("node_id", self.id + "\n")
        self.claim = self.kept_claim()

    def kept_claim(self):
        """What shows that an operator's approval is for this machine."""
        with contextlib.suppress(OSError):
            found = kept("claim")
            if re.match("[A-Za-z0-9_-]{22,128}$", found):
                return found
        made = uuid.uuid4().hex
        self.keep("claim", made + "\n")
        return made

    @staticmethod
    def kept_id():
        """The id kept here, or where older programs kept it, or a new one."""
        legacy = [] if SETTINGS.get("DAGI_HOME") else ["node-id", "../.dagi_node_id"]
        found = [kept(name) for name in ["node_id", *legacy]]
        known = next((text for text in found if re.match("[A-Za-z0-9._:-]{1,255}$", text)), None)
        return certified_id() or known or new_id()

    def become_another(self, why):
        """Take a new id; the old key still serves to join."""
        self.copied_key, self.key, self.token, self.replaced_at_s = self.key, None, None, None
        self.id = new_id()
        tell(why + "; this machine takes a new id")

    def keep(self, name, text):
        """Write a private file, all or nothing; where it cannot be kept, say so, once."""
        temporary = os.path.join(home(), "%s.%d" % (name, os.getpid()))
        try:
            if self.may_keep:
                os.makedirs(home(), mode=0o700, exist_ok=True)
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    file.write(text)
                os.replace(temporary, os.path.join(home(), name))
        except OSError as error:
            self.complain(error)
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def complain(self, error):
        """The identity cannot be kept: said once."""
        if not self.complained:
            self.complained = True
            tell("the identity cannot be kept in %s: %s" % (home(), error.strerror), sys.stderr)

    def ask(self, what, body):
        """(status, answer, seconds to wait first)."""
        body.update({"node_id": self.id, "instance_id": self.instance})
        if self.token:
            body["token"] = self.token
        key = SETTINGS.get("NODE_API_KEY") or self.key or SETTINGS.get("NODE_JOIN_TOKEN") or self.copied_key
        return self.registries.call("POST", "/api/v1/nodes/" + what, body, key)

    def register(self):
        """Register; keep what the registry gives."""
        host, found = socket.gethostname(), capabilities()
        body = {
            "node_name": SETTINGS.get("NODE_NAME") or host, "role": SETTINGS.get("NODE_ROLE") or "worker",
            "node_type": SETTINGS.get("NODE_TYPE"), "region": SETTINGS.get("NODE_REGION"),
            "labels": listed("NODE_LABELS"), "hostname": host, "status": "online", "machine_id": self.machine,
            "claim": self.claim,
            "ip_address": SETTINGS.get("NODE_ADVERTISE_ADDR"), "local_ip": self.local_ip(), "capabilities": found,
        }  # fmt: skip
        result = self.ask("register", {name: value for name, value in body.items() if value is not None})
        status, answer, _ = result
        signs = answer.get("code") == "signing_key_differs"  # the id is of an agent that signs, which we cannot
        if status == 409 and (signs or not self.key) and not is_given():  # nothing here proves otherwise
            self.become_another(self.id + " is another node's")
        if status != 200:
            return result
        if answer.get("node_id") != self.id or not self.obey(answer.get("config")):
            return None, {"detail": "what answers at %s is not a registry" % self.registries.urls[0]}, None
        self.registered, self.token, self.key = True, answer.get("token"), answer.get("api_key") or self.key
        engine = found["ollama"]
        self.models = sorted(m["name"] for m in engine["models"]) if engine["available"] else self.meter.models
        self.keep("node_id", self.id + "\n")
        self.keep_credentials()
        tell("registered as %s with %s" % (self.id, self.registries.urls[0]))
        return result

    def keep_credentials(self):
        """Keep what registries gave."""
        known = {"node_id": self.id, "api_key": self.key, "token": self.token, "machine_id": self.machine}
        self.keep("credentials.json", json.dumps(known))

    def obey(self, config):
        """Heartbeat at the pace that the registry wants; whether it said a possible one."""
        asked = config.get("heartbeat_interval_s") if isinstance(config, dict) else None
        if not isinstance(asked, (int, float)) or not 0 < asked < 1e9:
            return False
        self.interval_s = min(max(number(SETTINGS.get("HEARTBEAT_INTERVAL")) or float(asked), 0.1), 3600.0)
        self.meter.interval_s = self.interval_s
        return True

    def beat(self, state):
        """Heartbeat."""
        result = self.ask("heartbeat", {"status": state, "metrics": self.meter.latest})
        status, answer, _ = result
        if status in (404, 409) or answer.get("code") == "not_allowlisted":
            self.registered = False
        if answer.get("code") == "instance_replaced" and state == "online":
            self.give_way(time.monotonic())
        if status == 200:
            self.obey(answer.get("config"))
            if answer.get("token") not in (None, self.token):
                self.token = answer["token"]
                self.keep_credentials()
        return result

    def give_way(self, now_s):
        """Another agent has registered as this node. Told so again soon, it is alive, and has the id."""
        before, self.replaced_at_s = self.replaced_at_s, now_s
        if before is not None and now_s - before < max(180, 3 * self.interval_s) and not is_given():
            self.become_another("another machine runs as %s, with a copy of this home" % self.id)

    def local_ip(self):
        """This machine's address towards the registry; a UDP connect sends nothing."""
        split = urllib.parse.urlsplit(self.registries.urls[0])
        try:
            found = socket.getaddrinfo(split.hostname, split.port or 80, type=socket.SOCK_DGRAM)[0]
            with socket.socket(found[0], found[1]) as probe:
                probe.connect(found[4])
                return probe.getsockname()[0]
        except (OSError, ValueError):
            return None


def live(node):
    """Register, then heartbeat, for ever."""
    failures = 0
    while True:
        known, first = node.meter.models, not node.registered
        stale = known is not None and known != node.models
        status, answer, wait_s = node.register() if first or stale else node.beat("online")
        pending = status == 403 and answer.get("code") == "pending"
        failures = 0 if status == 200 or pending else failures + 1
        if status == 200:  # the first heartbeat at a random moment: machines that start together spread out
            wait_s = node.interval_s * (random.random() if first else random.uniform(0.95, 1.05))
        elif node.registered or first:
            wait_s = (wait_s or 0.1) + random.uniform(0, min(2.0 ** min(failures, 10), MAX_WAIT_S))
        else:
            wait_s = random.random()  # to register again
        if status != 200:
            what = "waiting for approval" if pending else "failed (%s)" % (status or "no answer")
            why = "%s: %s; next try in %.0f s" % (what, answer.get("detail"), wait_s)
            if status == 401:
                name = "NODE_API_KEY" if node.key or SETTINGS.get("NODE_API_KEY") else "NODE_JOIN_TOKEN"
                why += "; this machine stays %s; set %s to what an operator makes for it" % (node.id, name)
            tell(why, sys.stderr)
        time.sleep(wait_s)


def main():
    """Join, and stay until SIGTERM."""
    if len(sys.argv) > 1:  # flags belong to `dagi-agent`: passing over them would register something else
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    locked()
    try:
        node = Node()
    except (OSError, ValueError) as error:
        sys.exit("CA_CERT, NODE_CERT or NODE_KEY cannot be used: %s" % error)
    node.meter.start()
    try:
        live(node)
    except (KeyboardInterrupt, SystemExit):
        for number_ in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number_, signal.SIG_IGN)
        left = node.registered and node.beat("leaving")[0] == 200
        tell("stopped; shown as draining until it comes back" if left else "stopped")


if __name__ == "__main__":
    main()
