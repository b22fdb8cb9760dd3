#!/usr/bin/env python3
"""Measures packet paths side by side: one tunnel process in each of two network namespaces, a veth pair between them.

Every peer runs in every round, one after the other (A B, A B, ...), so that what the machine does meanwhile touches all
alike; medians over the rounds are printed with their spread, and the ratio to `boringtun-cli -t 1`. Only ratios within one run
mean anything. Sender, receiver and both ends of the tunnel share the machine's cores.

  tcp1, 4, 16, 1R ...  iperf3 with one stream, four, sixteen, and each in reverse: Gbit/s received
  cpu                 CPU seconds of both tunnel processes for a gigabyte, during tcp1
  kpps                highest delivered rate of UDP packets of 64 and 200 bytes with less than 1 % lost, thousands a second
  cpu packet          CPU microseconds of both tunnel processes for a packet of 64 bytes, at a rate that every peer carries
  rtt, rtt busy       ping, idle and beside four TCP streams: median and 99th percentile, milliseconds
  rss                 the most resident memory of one tunnel process, MB

Postern runs with its whole policy path: signed grants, rules, flow table, deadlines. It signs with a key made for the run. Every peer
carries the same further UDP flows meanwhile (--flows).

Any other program that makes a WireGuard interface and listens on its UAPI socket is measured with --command NAME='PROGRAM {if}'.
iperf3 asks for cubic, because a machine's default of bbr changes the ranking.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

A, B = "postern-bench-a", "postern-bench-b"
R = "postern-bench-r"
INNER = {A: "100.80.0.1", B: "100.80.0.2"}
# Outer addresses: in one network, or behind a router each.
ENDS = {
    ("4", False): {A: ("10.98.0.1", 24), B: ("10.98.0.2", 24)},
    ("6", False): {A: ("fd00:98::1", 64), B: ("fd00:98::2", 64)},
    ("4", True): {A: ("10.98.1.1", 24), B: ("10.98.2.1", 24)},
    ("6", True): {A: ("fd00:98:1::1", 64), B: ("fd00:98:2::1", 64)},
}
ROUTER = {"4": {A: "10.98.1.254", B: "10.98.2.254"}, "6": {A: "fd00:98:1::fe", B: "fd00:98:2::fe"}}
OVERHEAD = 80  # outer IPv6, UDP and WireGuard
STEADY = 130_000  # packets a second
OFFERS = 3  # how often a rate of packets is offered before it counts as too high: one stall of the machine overflows a queue


def run(*command, check=True, timeout=120, **more):
    return subprocess.run(command, check=check, timeout=timeout, capture_output=True, text=True, **more)


def inside(side, *command):
    return ["ip", "netns", "exec", side, *command]


def until(condition, what, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


class Underlay:
    """Two namespaces and the veth pair between them, or a router and two."""

    def __init__(self, options):
        self.options = options
        self.ends = ENDS[options.outer, options.router]

    def __enter__(self):
        self.remove()
        for side in (A, B, R) if self.options.router else (A, B):
            run("ip", "netns", "add", side)
            run("ip", "-n", side, "link", "set", "lo", "up")
        if self.options.router:
            for side in (A, B):
                run("ip", "-n", side, "link", "add", "outer", "type", "veth", "peer", "name", "to-" + side[-1], "netns", R)
                self.link(R, "to-" + side[-1], ROUTER[self.options.outer][side], self.ends[side][1])
            run(*inside(R, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))
        else:
            run("ip", "-n", A, "link", "add", "outer", "type", "veth", "peer", "name", "outer", "netns", B)
        for side in (A, B):
            self.link(side, "outer", *self.ends[side])
            if self.options.router:
                run("ip", "-n", side, "route", "add", "default", "via", ROUTER[self.options.outer][side])
        return self

    def link(self, side, name, address, length):
        nodad = ["nodad"] if ":" in address else []
        run("ip", "-n", side, "addr", "add", f"{address}/{length}", "dev", name, *nodad)
        run("ip", "-n", side, "link", "set", name, "mtu", str(self.options.mtu + OVERHEAD), "up")
        features = {
            "default": [],
            "nic": ["tso", "off", "gso", "off", "tx-udp-segmentation", "off", "gro", "on"],
            "nooff": ["tx", "off", "tso", "off", "gso", "off", "tx-udp-segmentation", "off", "gro", "off"],
        }[self.options.variant]
        if features:
            run(*inside(side, "ethtool", "-K", name, *features), check=False)

    def __exit__(self, *_):
        self.remove()

    @staticmethod
    def remove():
        for side in (A, B, R):
            run("ip", "netns", "del", side, check=False)


NEBULA = """
pki: {{ca: {work}/ca.crt, cert: {work}/{name}.crt, key: {work}/{name}.key}}
static_host_map: {{"{peer}": ["{endpoint}"]}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: "{any}", port: 51820}}
tun: {{dev: {interface}, mtu: {mtu}}}
logging: {{level: error}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"""


class Tunnel:
    """A pair of tunnel processes of one kind."""

    def __init__(self, name, options):
        self.name, self.options, self.processes, self.logs = name, options, {}, []

    def command(self, side):
        files = {A: "a.json", B: "b.json"}
        if self.name.startswith("postern"):
            more = {"postern-plain": ["--plain"], "postern-unjudged": ["--unjudged"]}.get(self.name, [])
            if workers := re.fullmatch(r"postern-(\d+)-workers", self.name):
                more = ["--workers", workers.group(1)]
            program = [self.options.postern, "bench-plane", "run", f"{self.work}/{files[side]}"]
            return [*program, "--interface", "wgb", "--mtu", str(self.options.mtu), *more]
        if self.name.startswith("boringtun"):
            threads = ["-t", "1"] if self.name == "boringtun-t1" else []
            return ["boringtun-cli", "-f", "--disable-drop-privileges", *threads, self.interface(side)]
        if self.name == "wireguard-go":
            return ["wireguard-go", "-f", self.interface(side)]
        if self.name == "gotatun":
            return ["gotatun", "-f", "--disable-drop-privileges", self.interface(side)]
        if self.name == "nebula":
            return ["nebula", "-config", f"{self.work}/{side}.yml"]
        if self.name in self.options.commands:
            return self.options.commands[self.name].replace("{if}", self.interface(side)).split()
        known = "postern, postern-N-workers, postern-plain, postern-unjudged, boringtun-t1, boringtun, gotatun, wireguard-go, nebula"
        sys.exit(f"unknown peer {self.name}: {known}, or a NAME of --command")

    def interface(self, side):
        # Sockets for configuration lie in one folder for both namespaces: the names must differ.
        return "wgb" if self.name.startswith("postern") else {A: "wgba", B: "wgbb"}[side]

    def __enter__(self):
        self.work = os.path.join(self.options.work, "grants")
        shutil.rmtree(self.work, ignore_errors=True)
        ours = self.name.startswith("postern")
        if ours:
            ends = ["--a", self.endpoint(A), "--b", self.endpoint(B)]
            size = ["--rules", str(self.options.rules), "--peers", str(self.options.further_peers)]
            run(self.options.postern, "bench-plane", "prepare", self.work, *ends, *size)
        if self.name == "nebula":
            self.prepare_nebula()
        self.flows = None
        for side in (A, B):
            log = open(os.path.join(self.options.work, f"{self.name}-{side}.log"), "w")
            self.logs.append(log)
            environment = {**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"}
            self.processes[side] = subprocess.Popen(
                inside(side, *self.command(side)), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )
        try:
            self.configure(ours)
            if self.options.flows:
                keeper = os.path.join(os.path.dirname(os.path.abspath(__file__)), "flows.py")
                command = inside(A, sys.executable, keeper, INNER[B], str(self.options.flows))
                self.flows = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                self.flows.stdout.readline()
        except Exception:
            self.__exit__()
            raise
        return self

    def endpoint(self, side):
        address = ENDS[self.options.outer, self.options.router][side][0]
        return f"[{address}]:51820" if ":" in address else f"{address}:51820"

    def prepare_nebula(self):
        os.makedirs(self.work)
        run("nebula-cert", "ca", "-name", "bench", cwd=self.work)
        for side, other in ((A, B), (B, A)):
            run("nebula-cert", "sign", "-name", side, "-ip", INNER[side] + "/16", cwd=self.work)
            with open(f"{self.work}/{side}.yml", "w") as file:
                file.write(NEBULA.format(
                    work=self.work, name=side, peer=INNER[other], endpoint=self.endpoint(other), mtu=self.options.mtu,
                    any="[::]" if self.options.outer == "6" else "0.0.0.0", interface=self.interface(side),
                ))

    def configure(self, ours):
        for side in (A, B):
            there = lambda: run("ip", "-n", side, "link", "show", self.interface(side), check=False).returncode == 0
            until(there, f"the interface of {self.name}; see {self.logs[0].name}")
        if not ours and self.name != "nebula":
            keys = {side: run("wg", "genkey").stdout for side in (A, B)}
            public = {side: run("wg", "pubkey", input=keys[side]).stdout.strip() for side in (A, B)}
            for side, other in ((A, B), (B, A)):
                answers = lambda: run(*inside(side, "wg", "show", self.interface(side)), check=False).returncode == 0
                until(answers, f"the socket of {self.name}")
                peer = ["peer", public[other], "allowed-ips", "100.80.0.0/16", "endpoint", self.endpoint(other)]
                port = ["listen-port", "51820", "private-key", "/dev/stdin"]
                run(*inside(side, "wg", "set", self.interface(side), *port, *peer), input=keys[side])
        for side in (A, B):
            run("ip", "-n", side, "addr", "replace", INNER[side] + "/16", "dev", self.interface(side))
            run("ip", "-n", side, "link", "set", self.interface(side), "mtu", str(self.options.mtu), "up")
        ping = inside(A, "ping", "-c1", "-W1", "-q", INNER[B])
        until(lambda: run(*ping, check=False).returncode == 0, f"the first ping through {self.name}", 20)

    def __exit__(self, *_):
        if self.flows:
            self.flows.kill()
            self.flows.wait()
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for side in (A, B):
            run("ip", "-n", side, "link", "del", self.interface(side), check=False)
        for log in self.logs:
            log.close()

    def cpu(self):
        """CPU seconds of both processes until now."""
        ticks = 0
        for process in self.processes.values():
            fields = open(f"/proc/{process.pid}/stat").read().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def rss(self):
        """The most resident memory of either process, MB."""
        most = 0
        for process in self.processes.values():
            status = open(f"/proc/{process.pid}/status").read()
            most = max(most, int(re.search(r"VmHWM:\s+(\d+)", status).group(1)))
        return most / 1024


def server(port):
    process = subprocess.Popen(
        inside(B, "iperf3", "-s", "-1", "-p", str(port)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    listens = lambda: str(port) in run(*inside(B, "ss", "-Hltn", f"sport = :{port}")).stdout
    until(listens, "iperf3's server")
    return process


def iperf3(streams, seconds, port, *more):
    return inside(A, "iperf3", "-c", INNER[B], "-p", str(port), "-P", str(streams), "-t", str(seconds), "-C", "cubic", "-J", *more)


def tcp(tunnel, streams, seconds, *more):
    listener = server(5201)
    before = tunnel.cpu()
    result = json.loads(run(*iperf3(streams, seconds, 5201, *more), timeout=seconds + 30).stdout)
    cpu = tunnel.cpu() - before
    listener.wait(10)
    received = result["end"]["sum_received"]
    gigabytes = received["bytes"] / 1e9
    return received["bits_per_second"] / 1e9, cpu / gigabytes if gigabytes else float("nan")  # some peers take no long packets


def offer(pace, size, rate, seconds):
    """Offers packets of `size` bytes and returns what was sent and what arrived, packets a second."""
    counter = subprocess.Popen(inside(B, pace, "count", "7000", "300"), stdout=subprocess.PIPE, text=True)
    counter.stdout.readline()
    sent, took = run(*inside(A, pace, "send", INNER[B], "7000", str(size), str(rate), str(seconds), "4")).stdout.split()
    received = int(counter.communicate(timeout=30)[0])
    return int(sent) / float(took), received / float(took)


def small_packets(pace, size, tries, seconds):
    low, high, best = 20_000, 900_000, 0.0
    for _ in range(tries):
        rate = int((low * high) ** 0.5)
        for _ in range(OFFERS):
            sent, received = offer(pace, size, rate, seconds)
            if received >= 0.99 * sent:
                break
        if received >= 0.99 * sent:
            best = max(best, received)
            if sent < 0.95 * rate:
                high = rate  # the sender itself gives no more
            else:
                low = rate
        else:
            high = rate
    return best / 1e3


def cpu_of_a_packet(tunnel, pace, seconds):
    before = tunnel.cpu()
    _, received = offer(pace, 64, STEADY, seconds)
    return (tunnel.cpu() - before) * 1e6 / max(received * seconds, 1)


def ping(count):
    text = run(*inside(A, "ping", "-i", "0.005", "-c", str(count), "-W", "1", INNER[B]), check=False).stdout
    times = sorted(float(value) for value in re.findall(r"time=([0-9.]+)", text))
    if not times:
        raise RuntimeError("no ping came back")
    return statistics.median(times), times[int(len(times) * 0.99)]


def busy_ping(count):
    listener = server(5202)
    load = subprocess.Popen(iperf3(4, count * 0.0055 + 2, 5202)[:-1], stdout=subprocess.DEVNULL)
    time.sleep(0.7)  # the streams' slow start; what is measured is the steady state
    result = ping(count)
    load.wait(60)
    listener.wait(10)
    return result


def measure(tunnel, options):
    seconds = 2 if options.quick else 10
    figures = {}
    figures["tcp1"], figures["cpu"] = tcp(tunnel, 1, seconds)
    figures["tcp4"], _ = tcp(tunnel, 4, seconds)
    figures["tcp16"], _ = tcp(tunnel, 16, seconds)
    for streams in (1, 4, 16):
        figures[f"tcp{streams}R"], _ = tcp(tunnel, streams, seconds, "-R")
    tries = (6, 0.4) if options.quick else (8, 1.2)
    figures["kpps"] = small_packets(options.pace, 64, *tries)
    figures["kpps200"] = small_packets(options.pace, 200, *tries)
    figures["cpu_packet"] = cpu_of_a_packet(tunnel, options.pace, 1 if options.quick else 5)
    figures["rtt"], figures["rtt_p99"] = ping(150 if options.quick else 1000)
    figures["busy"], figures["busy_p99"] = busy_ping(250 if options.quick else 1000)
    figures["rss"] = tunnel.rss()
    return figures


def flame(options):
    with Underlay(options), Tunnel(options.peers, options) as tunnel:
        both = ",".join(str(process.pid) for process in tunnel.processes.values())
        listener = server(5201)
        load = subprocess.Popen(iperf3(4, 12, 5201), stdout=subprocess.DEVNULL)
        time.sleep(1)  # the streams' slow start
        run("perf", "record", "-F", "999", "-e", "cpu-clock", "--call-graph", "dwarf,16384", "-o", options.flame, "-p", both, "--", "sleep", "8")
        load.wait(60)
        listener.wait(10)


COLUMNS = [
    ("tcp1", "TCP 1 Gbit/s"), ("tcp4", "TCP 4"), ("tcp16", "TCP 16"), ("tcp1R", "TCP 1 reverse"), ("tcp4R", "4 reverse"),
    ("tcp16R", "16 reverse"), ("cpu", "CPU s/GB"), ("kpps", "64 B kpps"), ("kpps200", "200 B"),
    ("cpu_packet", "CPU us/packet"),
    ("rtt", "RTT ms"), ("rtt_p99", "p99"), ("busy", "RTT busy ms"), ("busy_p99", "p99"), ("rss", "RSS MB"),
]


def table(results):
    reference = results.get("boringtun-t1")
    median = lambda rounds, key: statistics.median(figures[key] for figures in rounds)
    rows = [["", *(title for _, title in COLUMNS)]]
    for name, rounds in results.items():
        cells = [name]
        for key, _ in COLUMNS:
            values = [figures[key] for figures in rounds]
            cells.append(f"{median(rounds, key):.3g} ({min(values):.3g}-{max(values):.3g})")
        rows.append(cells)
    if reference:
        for name, rounds in results.items():
            if rounds is not reference:
                ratio = lambda key: median(rounds, key) / max(median(reference, key), 1e-9)
                rows.append([f"{name} / boringtun-t1", *(f"x {ratio(key):.2f}" for key, _ in COLUMNS)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def plot(results, path):
    """Draws each figure beside the best and the reference, as bars of the ratio to boringtun-t1 (longer is better)."""
    reference = results.get("boringtun-t1")
    if not reference:
        return
    median = lambda rounds, key: statistics.median(figures[key] for figures in rounds)
    shown = [(key, title) for key, title in COLUMNS if key != "rss"]
    colours = ["#2f6f4f", "#8a8f98", "#c08a3e", "#5b7fb5", "#a45b8a", "#6b8e23", "#999966"]
    bar, gap, left, scale = 12, 14, 120, 80
    height = len(shown) * (len(results) * bar + gap) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(820, left + len(results) * 140)}" height="{height}" font-family="sans-serif" font-size="11">',
             '<rect width="100%" height="100%" fill="white"/>']
    for place, name in enumerate(results):
        x = left + place * 140
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{colours[place % len(colours)]}"/><text x="{x + 14}" y="17">{name}</text>')
    y = 32
    for key, title in shown:
        parts.append(f'<text x="{left - 8}" y="{y + len(results) * bar / 2 + 4}" text-anchor="end">{title}</text>')
        for place, (name, rounds) in enumerate(results.items()):
            ratio = median(rounds, key) / max(median(reference, key), 1e-9)
            smaller_is_better = key.startswith(("cpu", "rtt", "busy"))
            ratio = 1 / max(ratio, 1e-9) if smaller_is_better else ratio
            width = min(ratio, 8.0) * scale
            parts.append(f'<rect x="{left}" y="{y}" width="{width:.0f}" height="{bar - 2}" fill="{colours[place % len(colours)]}"/>'
                         f'<text x="{left + width + 4:.0f}" y="{y + bar - 3}">{ratio:.2f}</text>')
            y += bar
        y += gap
    parts.append("</svg>")
    with open(path, "w") as file:
        file.write("\n".join(parts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", default="postern,boringtun-t1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=["default", "nic", "nooff"], default="default")
    parser.add_argument("--outer", choices=["4", "6"], default="4", help="the outer addresses' family")
    parser.add_argument("--mtu", type=int, default=1420, help=f"the inner MTU; the outer links take {OVERHEAD} more")
    parser.add_argument("--router", action="store_true", help="a router between the two ends")
    parser.add_argument("--rules", type=int, default=10, help="rules of each peer")
    parser.add_argument("--further-peers", type=int, default=1_000)
    parser.add_argument("--flows", type=int, default=50_000, help="further UDP flows that live meanwhile")
    parser.add_argument("--command", action="append", default=[], metavar="NAME=PROGRAM", help="a further peer; see above")
    parser.add_argument("--plot", help="where to write an SVG")
    parser.add_argument("--flame", metavar="FILE", help="measure nothing; record where the time goes under four streams (perf)")
    parser.add_argument("--json")
    parser.add_argument("--postern", required=True)
    parser.add_argument("--pace", required=True)
    parser.add_argument("--work", required=True)
    options = parser.parse_args()
    options.commands = dict(command.split("=", 1) for command in options.command)
    results = {name: [] for name in options.peers.split(",")}
    if options.flame:
        return flame(options)
    with Underlay(options):
        for number in range(options.rounds):
            for name, rounds in results.items():
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
                with Tunnel(name, options) as tunnel:
                    rounds.append(measure(tunnel, options))
    table(results)
    document = {"variant": options.variant, "rules": options.rules, "peers": options.further_peers, "flows": options.flows,
                "mtu": options.mtu, "outer": options.outer, "router": options.router, "kernel": os.uname().release, "cores": os.cpu_count(), "results": results}
    path = options.json or os.path.join(options.work, "dataplane.json")
    with open(path, "w") as file:
        json.dump(document, file, indent=1)
    drawing = options.plot or os.path.splitext(path)[0] + ".svg"
    plot(results, drawing)
    print(f"\nEvery round as JSON: {path}; ratios drawn: {drawing}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    main()
