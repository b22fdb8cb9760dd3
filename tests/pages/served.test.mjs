// What a person does on the pages of a controller as it is served: real program, real database, real TLS.
import assert from "node:assert/strict";
import { get } from "node:https";
import { after, before, test } from "node:test";
import { Machine, Served } from "./served.mjs";
import { signIn, totp } from "./world.mjs";

let world;
before(async () => { world = await Served.open(); });
after(() => world?.close());

const heading = (page) => page.locator("h1").innerText();

async function noSidewaysScroll(page) {
  await page.setViewportSize({ width: 390, height: 844 });
  const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(inner <= outer, `${page.url()} is ${inner} px wide on a screen of ${outer}`);
  await page.setViewportSize({ width: 1280, height: 860 });
}

test("TLS 1.3 with a certificate of the controller's own authority, and strict headers", async () => {
  const answer = await new Promise((done, failed) => {
    get(world.url + "/sign-in", { ca: world.authority(), rejectUnauthorized: true }, (response) => {
      response.resume();
      done({ headers: response.headers, protocol: response.socket.getProtocol(), trusted: response.socket.authorized });
    }).on("error", failed);
  });
  assert.equal(answer.protocol, "TLSv1.3");
  assert.ok(answer.trusted);
  assert.match(answer.headers["content-security-policy"], /default-src 'none'/);
  assert.match(answer.headers["strict-transport-security"], /max-age=/);
  for (const cookie of answer.headers["set-cookie"] ?? []) assert.match(cookie, /^__Host-.*Secure.*HttpOnly|^__Host-.*HttpOnly.*Secure/);
});

test("a wrong password is refused, the right one opens the resources that policy names", async () => {
  const page = await world.page();
  await page.goto("/");
  await signIn(page, "alice@corp.example", "wrong password here");
  assert.match(await page.getByRole("alert").innerText(), /Login or password is wrong/);
  await signIn(page, "alice@corp.example", world.pages.password);
  await page.waitForURL(world.url + "/");
  assert.equal(await heading(page), "Your resources");
  assert.match(await page.locator("main").innerText(), /wiki/);
  await noSidewaysScroll(page);
  await world.pictures(page, "served-home");
  assert.deepEqual(page.complaints, []);
});

test("a person whom no rule names is told so", async () => {
  const page = await world.signedIn("bob@corp.example");
  assert.match(await page.locator("main").innerText(), /No rule names you yet/);
});

test("a machine that waits on its stream is let in by keyboard alone, and then has a login session", async () => {
  const laptop = new Machine(world, "alice-laptop");
  const { code, joined } = await laptop.askForPerson();
  const page = await world.page();
  await page.goto("/join?code=" + code);
  await page.locator("#login:focus").waitFor();
  await page.keyboard.type("alice@corp.example");
  await page.keyboard.press("Tab");
  await page.keyboard.type(world.pages.password);
  await page.keyboard.press("Enter");
  await page.getByText("Is this your machine?").waitFor();
  assert.match(await page.locator("main").innerText(), /alice-laptop/);
  await noSidewaysScroll(page);
  await world.pictures(page, "served-join");
  const confirm = page.getByRole("button", { name: "Yes, let it in" });
  for (let i = 0; i < 20 && !(await confirm.evaluate((button) => button === document.activeElement)); i++) await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "alice-laptop is in" }).waitFor();
  assert.equal((await joined).name, "alice-laptop");
  assert.match(world.ctl(["session", "list"]), /alice@corp\.example\/alice-laptop/);
  assert.deepEqual(page.complaints, []);
  laptop.socket.close();
});

test("a code works once", async () => {
  const { code } = await new Machine(world, "second-laptop").askForPerson();
  const page = await world.signedIn();
  await page.goto("/join?code=" + code);
  await page.getByRole("button", { name: "Refuse" }).click();
  await page.getByRole("heading", { name: "Refused" }).waitFor();
  await page.goto("/join?code=" + code);
  assert.match(await page.locator("main").innerText(), /This code has expired/);
});

test("a WireGuard configuration names the resource's machine and the key that the browser made", async () => {
  const page = await world.signedIn();
  await page.goto("/wireguard");
  await page.getByLabel("Name of the machine").fill("alice-phone");
  await page.getByRole("button", { name: "Make a key in this browser" }).click();
  await page.locator("#qr svg").waitFor();
  const text = await page.locator("#text").innerText();
  assert.match(text, /^PrivateKey = [A-Za-z0-9+/]{43}=$/m);
  assert.match(text, new RegExp(`^PublicKey = ${world.wiki.wireguard.toString("base64").replace(/[+/]/g, "\\$&")}$`, "m"));
  assert.match(text, /^Endpoint = 192\.0\.2\.7:51820$/m);
  await noSidewaysScroll(page);
  await world.pictures(page, "served-wireguard");
  assert.deepEqual(page.complaints, []);
});

test("a second factor is asked for, and a half-finished sign-in ends with the password", async () => {
  const page = await world.signedIn();
  await page.getByRole("link", { name: "Set up a second factor" }).click();
  await page.getByText("Cannot scan it?").click();
  const key = await page.locator(".secret").innerText();
  await page.getByLabel("Code from your authenticator").fill(totp(key, -1));
  await page.getByRole("button", { name: "Turn it on" }).click();
  await page.waitForURL(world.url + "/");
  await page.getByRole("button", { name: "Sign out", exact: true }).click();
  assert.equal(await heading(page), "Signed out");
  assert.equal((await page.request.get("/", { maxRedirects: 0 })).status(), 303, "signed out is signed out");

  await page.goto("/sign-in");
  await signIn(page, "alice@corp.example", world.pages.password);
  assert.equal(await heading(page), "One more step");
  world.ctl(["user", "passwd", "alice@corp.example", "--password-file", "-"], "another horse battery staple");
  await page.getByLabel("Code from your authenticator").fill(totp(key, 0));
  await page.getByRole("button", { name: "Sign in" }).click();
  assert.match(await page.locator("main").innerText(), /Start over/);
  await world.pictures(page, "served-start-over");

  await page.goto("/sign-in");
  await signIn(page, "alice@corp.example", "another horse battery staple");
  await page.getByLabel("Code from your authenticator").fill(totp(key, 0));
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.waitForURL(world.url + "/");
  assert.deepEqual(page.complaints, []);
});

test("forms from other sites and without their token change nothing", async () => {
  const page = await world.signedIn("bob@corp.example");
  const token = await page.locator("input[name=token]").first().getAttribute("value");
  const post = (headers, form) => page.request.post("/sign-out", { headers, form, maxRedirects: 0 });
  for (const [headers, form] of [
    [{ origin: "https://attacker.example" }, { token }],
    [{ origin: world.url, "sec-fetch-site": "cross-site" }, { token }],
    [{ origin: world.url }, {}],
    [{ origin: world.url }, { token: "x".repeat(token.length) }],
  ]) assert.ok([400, 403, 422].includes((await post(headers, form)).status()), JSON.stringify(headers));
  assert.equal((await page.goto("/")).status(), 200);
  assert.equal(await heading(page), "Your resources");
});

test("whoever is revoked is signed out of the pages too", async () => {
  const page = await world.signedIn("bob@corp.example");
  world.ctl(["user", "disable", "bob@corp.example", "--reason", "left"]);
  await page.goto("/");
  assert.equal(new URL(page.url()).pathname, "/sign-in");
});
