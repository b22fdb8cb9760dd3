// Starts the pages, the provider and Chromium for a test file, and ends them after it.
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const here = import.meta.dirname;

/** Starts a program that prints a line of JSON when it is ready; further lines are collected. */
function start(command, args) {
  return new Promise((ready, failed) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"] });
    const lines = [];
    let first = true;
    createInterface({ input: child.stdout }).on("line", (line) => {
      if (!line.startsWith("{")) return;
      if (first) ready({ child, lines, ...JSON.parse(line) });
      else lines.push(JSON.parse(line));
      first = false;
    });
    child.on("error", failed);
    child.on("exit", (code) => first && failed(new Error(`${command} ended with ${code}`)));
  });
}

function freePort() {
  return new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

export class World {
  static async open({ provider = false, name } = {}) {
    const world = new World();
    const port = await freePort();
    const listen = ["--listen", `127.0.0.1:${port}`, ...(name ? ["--name", name] : [])];
    if (provider) {
      world.provider = await start(join(here, "../idp/run"), ["--redirect", `http://127.0.0.1:${port}/oidc/callback`]);
      const { issuer, client_id, client_secret } = world.provider;
      listen.push("--issuer", issuer, "--client-id", client_id, "--client-secret", client_secret);
    }
    world.pages = await start(process.env.PAGES, listen);
    await world.launch();
    return world;
  }

  /** Starts Chromium. */
  async launch() {
    this.profile = mkdtempSync(join(tmpdir(), "postern-pages-"));
    this.browser = await chromium.launch({
      executablePath: process.env.CHROMIUM,
      args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"],
    });
  }

  get url() { return this.pages.url; }

  /** What was recorded in the audit log so far. */
  events() { return this.pages.lines; }

  /** Opens a page in a fresh browser profile; anything that the browser complains about is kept in `complaints`. */
  async page(options = {}) {
    const context = await this.browser.newContext({ baseURL: this.url, viewport: { width: 1280, height: 860 }, ...options });
    const page = await context.newPage();
    page.setDefaultTimeout(10_000);
    page.complaints = [];
    page.on("console", (message) => {
      const expected = /the server responded with a status of 4\d\d/.test(message.text());
      if (message.type() === "error" && !expected) page.complaints.push(message.text());
    });
    page.on("pageerror", (error) => page.complaints.push(String(error)));
    return page;
  }

  /** Opens a page of somebody who is signed in with a password. */
  async signedIn(login = "alice@corp.example", options = {}) {
    const page = await this.page(options);
    await page.goto("/sign-in");
    await signIn(page, login, this.pages.password);
    await page.waitForURL(this.url + "/");
    return page;
  }

  /** Takes pictures of what a page shows at both widths, in light and dark. */
  async pictures(page, name) {
    for (const width of [390, 1280]) for (const colorScheme of ["light", "dark"]) {
      await page.setViewportSize({ width, height: width === 390 ? 844 : 860 });
      await page.emulateMedia({ colorScheme });
      await page.screenshot({ path: join(process.env.PICTURES, `${name}-${width}-${colorScheme}.png`), fullPage: true });
    }
    await page.setViewportSize({ width: 1280, height: 860 });
    await page.emulateMedia({ colorScheme: null });
  }

  async close() {
    await this.browser?.close();
    this.pages?.child?.kill();
    this.provider?.child.kill();
    if (this.profile) rmSync(this.profile, { recursive: true, force: true });
  }
}

export async function signIn(page, login, password) {
  await page.getByLabel("Login").fill(login);
  await page.getByLabel("Password", { exact: true }).fill(password);
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
}

/** Plays an authenticator: the code of the key shown as base 32, `steps` of 30 seconds from now (RFC 6238). */
export function totp(key, steps = 0) {
  const bits = [...key.replace(/\s/g, "")].map((c) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".indexOf(c).toString(2).padStart(5, "0")).join("");
  const secret = Buffer.from(bits.match(/.{8}/g).map((byte) => parseInt(byte, 2)));
  const counter = Buffer.alloc(8);
  counter.writeBigUInt64BE(BigInt(Math.floor(Date.now() / 30_000) + steps));
  const mac = createHmac("sha1", secret).update(counter).digest();
  const number = mac.readUInt32BE(mac[19] & 15) & 0x7fffffff;
  return String(number % 1_000_000).padStart(6, "0");
}
