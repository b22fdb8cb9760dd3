// A controller as it is served: the real program with its database, its policy and its own certificate authority, and machines
// that speak to it over their streams, as far as the pages need them.
import { spawn, spawnSync } from "node:child_process";
import { createHash, generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { World } from "./world.mjs";

// Machines pin the key of the join link; here they are on the same host as the controller. A test of its own checks the certificate.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
process.removeAllListeners("warning");

const POLICY = `
[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/443"]

[[access]]
name = "staff read the wiki"
from = ["group:staff"]
to = ["wiki"]
stock_clients = true
`;

const ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz";

/** Reads the 16 bytes of an identifier such as `non_...`. */
function idBytes(text) {
  let value = 0n;
  for (const c of text.split("_").at(-1)) value = (value << 5n) | BigInt(ALPHABET.indexOf(c));
  return Buffer.from(value.toString(16).padStart(32, "0"), "hex");
}

function idText(prefix, bytes) {
  const value = BigInt("0x" + bytes.toString("hex"));
  let text = "";
  for (let i = 25n; i >= 0n; i--) text += ALPHABET[Number((value >> (5n * i)) & 31n)];
  return prefix + text;
}

const freePort = () => new Promise((done) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => done(port));
  });
});

/** A machine: its device key, and a stream with which it joins and stays. */
export class Machine {
  constructor(served, name) {
    this.served = served;
    this.name = name;
    this.pair = generateKeyPairSync("ed25519");
    this.public = this.pair.publicKey.export({ format: "der", type: "spki" }).subarray(-32);
    this.wireguard = randomBytes(32);
  }

  open(onMessage) {
    this.socket?.close();
    this.socket = new WebSocket(this.served.url.replace("https", "wss") + "/v1/node");
    this.socket.onmessage = (event) => onMessage(JSON.parse(event.data));
  }

  sign(label, parts) {
    return sign(null, Buffer.concat([Buffer.from(`${label}\0`), ...parts]), this.pair.privateKey).toString("base64");
  }

  say(message) { this.socket.send(JSON.stringify(message)); }

  join({ nonce, protocol }) {
    const parts = [idBytes(nonce), this.public, this.wireguard, Buffer.from(this.name)];
    return {
      protocol, device_key: this.public.toString("base64"), wireguard_key: this.wireguard.toString("base64"),
      name: this.name, signature: this.sign("postern join v1", parts),
    };
  }

  /** Asks a person to sign in for it; returns the code, and a promise of having joined. */
  askForPerson() {
    return new Promise((shown, failed) => {
      let joined;
      const done = new Promise((resolve) => { joined = resolve; });
      this.open((message) => {
        if (message.type === "challenge") this.say({ type: "join", ...this.join(message) });
        else if (message.type === "join_pending") shown({ code: message.code, joined: done });
        else if (message.type === "joined") joined(message);
        else failed(new Error(JSON.stringify(message)));
      });
    });
  }

  /** Joins with a token, and enforces (so it says) whatever it is told. */
  serve(token) {
    return new Promise((current, failed) => {
      this.open((message) => {
        if (message.type === "challenge") this.say({ type: "enrol", join: this.join(message), token });
        else if (message.type === "joined") this.hello(message.device, current);
        else failed(new Error(JSON.stringify(message)));
      });
    });
  }

  hello(device, current) {
    this.open((message) => {
      if (message.type === "challenge") {
        const [nonce, boot] = [randomBytes(16), randomBytes(16)];
        const signature = this.sign("postern stream hello v1", [idBytes(message.nonce), idBytes(device), boot, nonce]);
        this.say({
          type: "hello", protocol: message.protocol, device, signature, nonce: idText("non_", nonce), boot: idText(BOOT, boot),
          enforced: null, keys: [this.wireguard.toString("base64")], listen_port: 51820, endpoints: ["192.0.2.7:51820"], version: "pages",
        });
      } else if (message.type === "grants") {
        const { position } = JSON.parse(message.signed.document);
        this.say({ type: "enforced", position, cut: 0 });
        current();
      }
    });
  }
}

const BOOT = "boo_";

export class Served extends World {
  static async open() {
    const world = new Served();
    world.dir = mkdtempSync(join(tmpdir(), "postern-served-"));
    const port = await freePort();
    world.served = `https://127.0.0.1:${port}`;
    world.ctl(["init", "--dir", world.dir, "--url", world.served, "--listen", `127.0.0.1:${port}`]);
    writeFileSync(join(world.dir, "policy.toml"), POLICY);
    world.program = spawn(process.env.CONTROLLER, [...world.config(), "serve"], { stdio: ["ignore", "inherit", "ignore"] });
    for (let tries = 0; world.ask(["status"]).status !== 0; tries++) {
      if (tries > 500 || world.program.exitCode !== null) throw new Error("the controller does not answer");
      await new Promise((again) => setTimeout(again, 50));
    }
    world.pages = { password: "correct horse battery staple", lines: [] };
    for (const [login, groups] of [["alice@corp.example", ["staff"]], ["bob@corp.example", []]]) {
      const args = ["user", "add", login, "--password-file", "-", ...groups.flatMap((group) => ["--group", group])];
      world.ctl(args, world.pages.password);
    }
    const token = JSON.parse(world.ctl(["--json", "token", "create", "--tag", "wiki", "--ttl", "1h"])).token;
    world.wiki = new Machine(world, "wiki-1");
    await world.wiki.serve(token);
    await world.launch();
    return world;
  }

  get url() { return this.served; }

  config() { return ["--config", join(this.dir, "controller.toml")]; }

  ask(args, input = "") { return spawnSync(process.env.CONTROLLER, [...this.config(), ...args], { input, encoding: "utf8" }); }

  /** Runs a command of `postern-controller` and returns what it prints. */
  ctl(args, input) {
    const done = this.ask(args, input);
    if (done.status !== 0) throw new Error(`${args.join(" ")}: ${done.stderr || done.stdout}`);
    return done.stdout;
  }

  authority() { return readFileSync(join(this.dir, "keys/ca.crt")); }

  page(options = {}) { return super.page({ ignoreHTTPSErrors: true, ...options }); }

  fingerprint(bytes) { return createHash("sha256").update(bytes).digest("hex"); }

  async close() {
    this.wiki?.socket?.close();
    await super.close();
    this.program?.kill();
    rmSync(this.dir, { recursive: true, force: true });
  }
}
