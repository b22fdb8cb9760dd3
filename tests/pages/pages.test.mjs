// What a person does on the pages, with local accounts.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import jsqr from "jsqr";
import { PNG } from "pngjs";
import { World, signIn, totp } from "./world.mjs";

let world;
before(async () => { world = await World.open(); });
after(() => world?.close());

const heading = (page) => page.locator("h1").innerText();

async function readQr(page, selector) {
  const png = PNG.sync.read(await page.locator(selector).screenshot());
  return jsqr(Uint8ClampedArray.from(png.data), png.width, png.height)?.data;
}

async function noSidewaysScroll(page) {
  await page.setViewportSize({ width: 390, height: 844 });
  const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(inner <= outer, `${page.url()} is ${inner} px wide on a screen of ${outer}`);
  await page.setViewportSize({ width: 1280, height: 860 });
}

test("sign-in asks again after a wrong password and says why", async () => {
  const page = await world.page();
  await page.goto("/");
  assert.equal(new URL(page.url()).pathname, "/sign-in");
  await world.pictures(page, "sign-in");
  await signIn(page, "alice@corp.example", "wrong password here");
  await page.getByRole("alert").waitFor();
  assert.match(await page.getByRole("alert").innerText(), /Login or password is wrong/);
  assert.equal(await page.getByLabel("Login").inputValue(), "alice@corp.example");
  await world.pictures(page, "sign-in-refused");
  await signIn(page, "alice@corp.example", world.pages.password);
  await page.waitForURL(world.url + "/");
  assert.deepEqual(page.complaints, []);
});

test("home shows what may be reached and why not, and hostile names stay text", async () => {
  const page = await world.signedIn();
  assert.equal(await heading(page), "Your resources");
  assert.equal(await page.locator(".row").count(), 4);
  for (const summary of await page.locator(".row .more summary").all()) await summary.click();
  assert.match(await page.locator(".row", { hasText: "wiki" }).innerText(), /<script>document.title='owned'<\/script>/);
  assert.equal(await page.title(), "Your resources · Postern");
  assert.match(await page.locator(".row", { hasText: "git" }).innerText(), /step-up git/);
  for (const summary of await page.locator(".row .more summary").all()) await summary.click();
  await noSidewaysScroll(page);
  await world.pictures(page, "home");
  assert.deepEqual(page.complaints, []);
});

test("somebody whom no rule names is told so", async () => {
  const page = await world.signedIn("bob@corp.example");
  assert.match(await page.locator("main").innerText(), /No rule names you yet/);
  await world.pictures(page, "home-empty");
  await page.goto("/wireguard");
  assert.match(await page.locator("main").innerText(), /No rule for you permits stock WireGuard clients/);
});

test("a link with a code leads through sign-in to the machine, and only a button lets it in", async () => {
  const page = await world.page();
  await page.goto("/join?code=ktrm4821");
  await signIn(page, "alice@corp.example", world.pages.password);
  await page.waitForURL("**/join?code=KTRM-4821");
  assert.equal(await heading(page), "Is this your machine?");
  const facts = await page.locator("main").innerText();
  for (const fact of ["alice-laptop", "127.0.0.1", "your address", "KTRM-4821", "first time"]) assert.ok(facts.includes(fact), fact);
  assert.match(facts, /[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}/);
  await noSidewaysScroll(page);
  await world.pictures(page, "join");
  await page.getByRole("button", { name: "Yes, let it in" }).click();
  assert.equal(await heading(page), "alice-laptop is in");
  await world.pictures(page, "joined");
  await page.goto("/join?code=KTRM-4821");
  assert.match(await page.getByRole("alert").innerText(), /No machine waits under this code/);
  assert.deepEqual(page.complaints, []);
});

test("a phishing machine is shown for what it is, and can be refused", async () => {
  const page = await world.signedIn();
  await page.goto("/join?code=PHSH-6666");
  const facts = await page.locator("main").innerText();
  for (const fact of ["free-prize-machine.attacker.example", "2001:db8:bad::66", "not your address", "somebody else"]) assert.ok(facts.includes(fact), fact);
  await noSidewaysScroll(page);
  await world.pictures(page, "join-phishing");
  await page.getByRole("button", { name: "Refuse" }).click();
  assert.equal(await heading(page), "Refused");
  await world.pictures(page, "join-refused");
});

test("a machine that slips in after the page was shown is not confirmed", async () => {
  const page = await world.signedIn();
  await page.goto("/join?code=SWTC-1111");
  const other = Buffer.alloc(32, 77).toString("base64");
  await page.locator("form[action='/join/confirm'] input[name=key]").evaluate((field, key) => { field.value = key; }, other);
  await page.getByRole("button", { name: "Yes, let it in" }).click();
  assert.equal(await heading(page), "Another machine is asking now");
  await page.goto("/");
  assert.ok(!(await page.locator("main").innerText()).includes("honest-machine"));
});

test("a typed code is forgiven its form, and one that is none is refused", async () => {
  const page = await world.signedIn();
  await page.goto("/join");
  await world.pictures(page, "join-code");
  await page.getByLabel("Code").fill("nonsense");
  await page.keyboard.press("Enter");
  await page.getByRole("alert").waitFor();
  assert.match(await page.getByRole("alert").innerText(), /four letters and four digits/);
  await world.pictures(page, "join-code-refused");
  await page.getByLabel("Code").fill(" rfsd 2222 ");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Is this your machine?" }).waitFor();
});

test("guessing codes ends in a wait", async () => {
  const page = await world.signedIn("bob@corp.example");
  let status;
  for (let i = 0; i < 12 && status !== 429; i++) status = (await page.goto(`/join?code=BCDF-00${10 + i}`)).status();
  assert.equal(status, 429);
  assert.equal(await heading(page), "Too many attempts");
  await world.pictures(page, "rate-limited");
});

test("machines can be signed out and removed, the latter only on second thought", async () => {
  const page = await world.signedIn("carol@corp.example");
  await page.getByRole("button", { name: "Sign out alice-desktop" }).click();
  await page.locator(".card", { hasText: "alice-desktop" }).getByText("Signed out").waitFor();
  const card = page.locator(".card", { hasText: "old-thinkpad" });
  await card.locator("summary", { hasText: "Remove" }).click();
  await card.getByText("Its connections are cut").waitFor();
  await page.locator(".card", { hasText: "old-thinkpad" }).scrollIntoViewIfNeeded();
  await world.pictures(page, "remove");
  await card.getByRole("button", { name: "Remove old-thinkpad" }).click();
  await page.locator(".card", { hasText: "old-thinkpad" }).waitFor({ state: "detached" });
});

test("a second factor is set up once, asked for at the next sign-in, and each code works once", async () => {
  const page = await world.signedIn("carol@corp.example");
  await page.getByRole("link", { name: "Set up a second factor" }).click();
  await world.pictures(page, "second-factor");
  assert.match(await readQr(page, "svg.qr"), /^otpauth:\/\/totp\/Postern%20127\.0\.0\.1:carol%40corp\.example\?secret=[A-Z2-7]{32}&/);
  await page.getByText("Cannot scan it?").click();
  const key = await page.locator(".secret").innerText();
  await page.getByLabel("Code from your authenticator").fill("000000");
  await page.getByRole("button", { name: "Turn it on" }).click();
  assert.match(await page.getByRole("alert").innerText(), /wrong, expired/);
  await page.getByText("Cannot scan it?").click();
  assert.equal(await page.locator(".secret").innerText(), key, "the key stays while it is being set up");
  const first = totp(key, -1);
  await page.getByLabel("Code from your authenticator").fill(first);
  await page.getByRole("button", { name: "Turn it on" }).click();
  await page.waitForURL(world.url + "/");

  await page.getByRole("button", { name: "Sign out", exact: true }).click();
  assert.equal(await heading(page), "Signed out");
  await world.pictures(page, "signed-out");
  await page.goto("/sign-in");
  await signIn(page, "carol@corp.example", world.pages.password);
  assert.equal(await heading(page), "One more step");
  assert.equal((await page.request.get("/", { maxRedirects: 0 })).status(), 303, "half signed in is not signed in");
  await world.pictures(page, "second-factor-code");
  await page.getByLabel("Code from your authenticator").fill(first);
  await page.getByRole("button", { name: "Sign in" }).click();
  assert.match(await page.getByRole("alert").innerText(), /used already/);
  await page.getByLabel("Code from your authenticator").fill(totp(key, 0));
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.waitForURL(world.url + "/");
  const signIns = world.pages.lines.filter((event) => event.what.kind === "signed_in" && event.who.name === "carol@corp.example");
  assert.deepEqual(signIns.at(-1).what.amr, ["pwd", "otp"]);
});

test("the browser makes the key, and the private half is only in the browser", async () => {
  const page = await world.signedIn("alice@corp.example", { deviceScaleFactor: 2 });
  const sent = [];
  page.on("request", (request) => sent.push(request.url() + (request.postData() ?? "")));
  await page.goto("/wireguard");
  await world.pictures(page, "wireguard");
  await page.getByLabel("Name of the machine").fill("alice-phone");
  await page.getByRole("button", { name: "Make a key in this browser" }).click();
  await page.locator("#qr svg").waitFor();
  const text = await page.locator("#text").innerText();
  const secret = text.match(/^PrivateKey = ([A-Za-z0-9+/]{43}=)$/m)[1];
  assert.ok(!sent.some((bytes) => bytes.includes(secret) || bytes.includes(encodeURIComponent(secret))), "it was never sent");
  const { createPrivateKey, createPublicKey } = await import("node:crypto");
  const der = Buffer.concat([Buffer.from("302e020100300506032b656e04220420", "hex"), Buffer.from(secret, "base64")]);
  const made = createPublicKey(createPrivateKey({ key: der, format: "der", type: "pkcs8" })).export({ format: "jwk" });
  const told = await page.locator("#result").getAttribute("data-public-key");
  assert.equal(Buffer.from(made.x, "base64url").toString("base64"), told, "both halves belong together");
  assert.equal(await page.evaluate(() => sessionStorage.length), 0, "it is forgotten");
  await world.pictures(page, "wireguard-configuration");
  assert.equal((await readQr(page, "#qr svg"))?.trim(), text.trim(), "the QR code says the same");
  const [download] = await Promise.all([page.waitForEvent("download"), page.locator("#download").click()]);
  assert.equal(download.suggestedFilename(), "alice-phone.conf");
  const { readFileSync } = await import("node:fs");
  assert.equal(readFileSync(await download.path(), "utf8").trim(), text.trim());
  await noSidewaysScroll(page);
  assert.deepEqual(page.complaints, []);
});

test("everything but making a key works without scripts", async () => {
  const page = await world.signedIn("alice@corp.example", { javaScriptEnabled: false });
  await page.goto("/wireguard");
  assert.equal(await page.getByRole("button", { name: "Make a key" }).isVisible(), false);
  await page.getByLabel("Name of the machine").fill("my-router");
  await page.getByLabel("Public key").fill("not a key");
  await page.locator("#public_key").evaluate((field) => { field.removeAttribute("minlength"); });
  await page.getByRole("button", { name: "Get the configuration" }).click();
  assert.match(await page.getByRole("alert").innerText(), /not a WireGuard public key/);
  await world.pictures(page, "wireguard-refused");
  await page.getByLabel("Public key").fill(Buffer.alloc(32, 5).toString("base64"));
  await page.getByRole("button", { name: "Get the configuration" }).click();
  assert.match(await page.locator("#text").innerText(), /PASTE-YOUR-PRIVATE-KEY-HERE/);
  assert.match(await page.locator("#download").getAttribute("href"), /^data:text\/plain/);
  await world.pictures(page, "wireguard-without-scripts");
});

test("a one-time link sets a password once", async () => {
  const page = await world.page();
  await page.goto(world.pages.link);
  await world.pictures(page, "password");
  const set = async (password, again) => {
    await page.getByLabel("New password").fill(password);
    await page.getByLabel("Once more").fill(again);
    await page.getByRole("button", { name: "Set password" }).click();
  };
  await set("a new good password", "a different password");
  assert.match(await page.getByRole("alert").innerText(), /differ/);
  await set("dave dave dave dave", "dave dave dave dave");
  assert.match(await page.getByRole("alert").innerText(), /too easy to guess/);
  await set("a new good password", "a new good password");
  assert.equal(await heading(page), "Password set");
  await page.getByRole("link", { name: "Sign in" }).click();
  await signIn(page, "dave@corp.example", "a new good password");
  await page.waitForURL(world.url + "/");
  assert.equal((await page.goto(world.pages.link)).status(), 410);
  assert.equal(await heading(page), "This link has expired");
});

test("the whole way to a machine works by keyboard alone, and the focus is always visible", async () => {
  const page = await world.page();
  await page.goto("/sign-in?next=%2Fjoin");
  await page.locator("#login:focus").waitFor();
  await page.keyboard.type("alice@corp.example");
  await page.keyboard.press("Tab");
  await page.keyboard.type(world.pages.password);
  await page.keyboard.press("Enter");
  await page.waitForURL("**/join");
  await page.locator("#code:focus").waitFor();
  await page.keyboard.type("RFSD2222");
  await page.keyboard.press("Enter");
  await page.getByText("Is this your machine?").waitFor();
  const seen = [];
  for (let i = 0; i < 12; i++) {
    await page.keyboard.press("Tab");
    const focus = await page.evaluate(() => {
      const at = document.activeElement;
      const style = getComputedStyle(at);
      return { text: at.textContent.trim(), shown: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 };
    });
    if (focus.text && at(focus)) seen.push(focus.text);
    if (focus.text === "Refuse") break;
  }
  function at(focus) { assert.ok(focus.shown, `${focus.text}: focus cannot be seen`); return true; }
  assert.equal(seen[0], "Skip to content");
  assert.equal(seen.at(-1), "Refuse", `the safe choice comes first: ${seen}`);
  await world.pictures(page, "focus");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Refused" }).waitFor();
});

test("there is a page for every wrong turn", async () => {
  const page = await world.page();
  assert.equal((await page.goto("/no/such/page")).status(), 404);
  await world.pictures(page, "not-found");
  assert.equal((await page.goto("/sign-out")).status(), 405);
  assert.equal(await heading(page), "Not this way");
  assert.equal((await page.goto("/oidc/start")).status(), 404);
  assert.deepEqual(page.complaints, []);
});

test("text has enough contrast in light and dark", async () => {
  const page = await world.signedIn();
  const lowest = () => page.evaluate(() => {
    const parse = (color) => color.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const color = parse(getComputedStyle(at).backgroundColor);
        if (color.length === 3 || color[3] === 1) return color;
      }
      return [255, 255, 255];
    };
    let worst = { ratio: 99 };
    for (const element of document.querySelectorAll("body *")) {
      const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!own || !element.getClientRects().length) continue;
      const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < worst.ratio) worst = { ratio, text: element.textContent.trim().slice(0, 40) };
    }
    return worst;
  });
  for (const path of ["/", "/join?code=RFSD-2222", "/wireguard", "/join?code=x"]) for (const colorScheme of ["light", "dark"]) {
    await page.goto(path);
    await page.emulateMedia({ colorScheme });
    const worst = await lowest();
    assert.ok(worst.ratio >= 4.5, `${path} ${colorScheme}: ${worst.ratio.toFixed(2)} at "${worst.text}"`);
  }
});
