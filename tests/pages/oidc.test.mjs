// Sign-in at the real OpenID provider, in a real browser.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { World, signIn } from "./world.mjs";

let world;
before(async () => { world = await World.open({ provider: true }); });
after(() => world?.close());

async function toProvider(page, path = "/") {
  await page.goto(path);
  await page.getByRole("link", { name: "Sign in with Corp SSO" }).click();
  await page.waitForURL(world.provider.issuer + "/interaction/*");
}

test("signing in at the provider leads back to where the person wanted to go, with the groups of its claims", async () => {
  const page = await world.page();
  await page.goto("/join?code=KTRM-4821");
  await world.pictures(page, "sign-in-with-provider");
  await toProvider(page, "/join?code=KTRM-4821");
  await signIn(page, "alice", "alice-password");
  await page.waitForURL("**/join?code=KTRM-4821");
  assert.match(await page.locator("main").innerText(), /as alice@corp\.example/);
  await page.goto("/");
  assert.equal(await page.locator(".row").count(), 4, "the group staff opens them");
  const event = world.pages.lines.findLast((line) => line.what.kind === "signed_in");
  assert.deepEqual(event.who, { issuer: world.provider.issuer, subject: "alice", name: "alice@corp.example" });
  assert.deepEqual(event.what.amr, ["pwd", "otp"]);
  assert.deepEqual(page.complaints, []);
});

test("a person without groups, or whose groups are unknown, is signed in and reaches nothing", async () => {
  for (const login of ["bob", "mallory"]) {
    const page = await world.page();
    await toProvider(page);
    await signIn(page, login, `${login}-password`);
    await page.waitForURL(world.url + "/");
    assert.match(await page.locator("main").innerText(), /No rule names you yet/);
  }
});

/** Walks the way by hand up to the redirect back, without following it, and returns that URL. */
async function walk(page) {
  const devtools = await page.context().newCDPSession(page);
  await devtools.send("Fetch.enable", { patterns: [{ urlPattern: `${world.url}/oidc/callback*` }] });
  const paused = new Promise((seen) => devtools.once("Fetch.requestPaused", seen));
  await toProvider(page);
  const click = signIn(page, "alice", "alice-password").catch(() => {}); // it waits for the page that does not come
  const { requestId, request } = await paused;
  await devtools.send("Fetch.failRequest", { requestId, errorReason: "Aborted" });
  await click;
  await devtools.detach();
  return new URL(request.url);
}

async function refused(page, url, status, reason) {
  const answer = await page.goto(url.href);
  assert.equal(answer.status(), status);
  const event = world.pages.lines.findLast((line) => line.what.kind === "sign_in_refused");
  assert.equal(event.what.reason, reason);
  assert.equal((await page.request.get("/", { maxRedirects: 0 })).status(), 303, "not signed in");
}

test("a code works once", async () => {
  const page = await world.page();
  const back = await walk(page);
  assert.equal((await page.goto(back.href)).status(), 200);
  await page.context().clearCookies({ name: "__Host-postern" });
  await refused(page, back, 400, "oidc_state");
});

test("a wrong code is refused", async () => {
  const page = await world.page();
  const back = await walk(page);
  back.searchParams.set("code", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
  await refused(page, back, 403, "oidc_code");
  await world.pictures(page, "provider-refused");
});

test("a forged state is refused, and so is another browser's", async () => {
  const page = await world.page();
  const back = await walk(page);
  const forged = new URL(back);
  forged.searchParams.set("state", "A".repeat(43));
  await refused(page, forged, 400, "oidc_state");
  await world.pictures(page, "provider-restart");
  const other = await world.page();
  await other.goto("/sign-in");
  await refused(other, back, 400, "oidc_state");
});

test("an answer that names another issuer, or none, is refused", async () => {
  for (const change of [(url) => url.searchParams.set("iss", "https://evil.example"), (url) => url.searchParams.delete("iss")]) {
    const page = await world.page();
    const back = await walk(page);
    change(back);
    await refused(page, back, 403, "oidc_issuer");
  }
});

test("the answer that is told first is the one that counts: a sign-in cannot be finished twice at once", async () => {
  const page = await world.page();
  const back = await walk(page);
  const cookies = (await page.context().cookies()).map(({ name, value }) => `${name}=${value}`).join("; ");
  const ask = () => fetch(back, { headers: { cookie: cookies }, redirect: "manual" });
  const answers = await Promise.all([ask(), ask(), ask()]);
  assert.deepEqual(answers.map((answer) => answer.status).sort(), [303, 400, 400]);
});

test("a provider that is away is told as such", async () => {
  const page = await world.page();
  const back = await walk(page);
  world.provider.child.kill();
  await new Promise((done) => world.provider.child.once("exit", done));
  await refused(page, back, 502, "provider_unavailable");
  await world.pictures(page, "provider-away");
});
