// Passkeys in a real browser with an authenticator of its own (CDP, WebAuthn domain): added, used to sign in and to step up,
// removed; a copied one, a cancelled one and one of another site get nobody in.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { World, signIn } from "./world.mjs";

let world;
before(async () => { world = await World.open({ name: "localhost" }); });
after(() => world?.close());

const STEP_UP = "/step-up/" + "a".repeat(43);

/** Gives a page an authenticator with a screen lock that says yes. */
async function authenticator(page, { verified = true } = {}) {
  const cdp = await page.context().newCDPSession(page);
  await cdp.send("WebAuthn.enable");
  const { authenticatorId } = await cdp.send("WebAuthn.addVirtualAuthenticator", {
    options: {
      protocol: "ctap2", transport: "internal", hasResidentKey: true, hasUserVerification: true, isUserVerified: verified,
      automaticPresenceSimulation: true,
    },
  });
  return {
    cdp, authenticatorId,
    verified: (isUserVerified) => cdp.send("WebAuthn.setUserVerified", { authenticatorId, isUserVerified }),
    credentials: async () => (await cdp.send("WebAuthn.getCredentials", { authenticatorId })).credentials,
    put: async (credential) => {
      await cdp.send("WebAuthn.removeCredential", { authenticatorId, credentialId: credential.credentialId });
      await cdp.send("WebAuthn.addCredential", { authenticatorId, credential });
    },
  };
}

async function withPasskey(login) {
  const page = await world.signedIn(login);
  const key = await authenticator(page);
  await page.goto("/passkeys");
  await page.getByLabel("What you call it").fill("my laptop");
  await page.getByRole("button", { name: "Add a passkey" }).click();
  await page.getByRole("heading", { name: "my laptop" }).first().waitFor();
  return { page, key };
}

async function signOut(page) {
  await page.getByRole("button", { name: "Sign out", exact: true }).click();
  await page.goto("/sign-in");
}

const events = (kind) => world.events().filter((event) => event.what.kind === kind);

test("a passkey is added, signs in by itself, and is worth more than a password", async () => {
  const { page, key } = await withPasskey("alice@corp.example");
  assert.equal((await key.credentials()).length, 1);
  await signOut(page);
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.waitForURL(world.url + "/");
  assert.match(await page.locator("header").innerText(), /alice@corp\.example/);
  const signedIn = events("signed_in").at(-1);
  assert.deepEqual(signedIn.what.amr, ["pop", "mfa"]);
  await page.goto("/passkeys");
  assert.match(await page.locator("main").innerText(), /Used \d+ s ago/);
  assert.deepEqual(page.complaints, []);
});

test("a step-up is confirmed with a passkey, of the same person alone", async () => {
  const { page, key } = await withPasskey("bob@corp.example");
  await page.goto(STEP_UP);
  await page.getByRole("button", { name: "Confirm with a passkey" }).click();
  await page.getByRole("heading", { name: "git is open" }).waitFor();
  assert.deepEqual(events("proven_anew").at(-1).what.amr, ["pop", "mfa"]);
  const [credential] = await key.credentials();

  const other = await world.signedIn("carol@corp.example");
  const borrowed = await authenticator(other);
  await borrowed.cdp.send("WebAuthn.addCredential", { authenticatorId: borrowed.authenticatorId, credential });
  await other.goto(STEP_UP);
  await other.getByRole("button", { name: "Confirm with a passkey" }).click();
  await other.getByText("somebody else").waitFor();
  assert.equal(events("sign_in_refused").at(-1).what.reason, "step_up_other_person");
  await other.goto("/");
  assert.match(await other.locator("header").innerText(), /carol@corp\.example/);
});

test("a passkey whose counter goes back gets nobody in, and that is recorded", async () => {
  const { page, key } = await withPasskey("carol@corp.example");
  const [copy] = await key.credentials();
  await signOut(page);
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.waitForURL(world.url + "/");
  await signOut(page);
  await key.put({ ...copy, signCount: 1 });
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.getByText("may have been copied").waitFor();
  assert.equal(events("sign_in_refused").at(-1).what.reason, "passkey_copied");
  await page.goto("/");
  assert.match(page.url(), /sign-in/);
});

test("without the screen lock, without the passkey and after its removal nobody gets in", async () => {
  const { page, key } = await withPasskey("erin@corp.example");
  await signOut(page);
  await key.verified(false);
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.getByText("No passkey was used").waitFor();
  await key.verified(true);

  // Who has a passkey changes passkeys with it alone: a phished password must not become one.
  await page.reload();
  await signIn(page, "erin@corp.example", world.pages.password);
  await page.waitForURL(world.url + "/");
  await page.goto("/passkeys");
  await page.getByText("sign out and in again first: with a passkey").waitFor();
  assert.equal(await page.getByRole("button", { name: /Add a passkey|^Remove/ }).count(), 0);
  await signOut(page);
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.waitForURL(world.url + "/");
  await page.goto("/passkeys");
  while (await page.getByRole("button", { name: /^Remove/ }).count()) {
    await page.getByRole("button", { name: /^Remove/ }).first().click();
    await page.waitForLoadState();
  }
  await signOut(page);
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.getByText("Nobody here has this passkey").waitFor();
});

test("an answer to another page's question is refused", async () => {
  const { page } = await withPasskey("frank@corp.example");
  await signOut(page);
  const stale = await page.locator("form[data-passkey]").getAttribute("data-options");
  await page.reload();
  await page.evaluate((options) => { document.querySelector("form[data-passkey]").dataset.options = options; }, stale);
  await page.getByRole("button", { name: "Sign in with a passkey" }).click();
  await page.getByText("The passkey was not accepted").waitFor();
});

test("without scripts the password is the way, and nothing of passkeys shows", async () => {
  const page = await world.page({ javaScriptEnabled: false });
  await page.goto("/sign-in");
  assert.equal(await page.getByRole("button", { name: "Sign in with a passkey" }).isVisible(), false);
  await signIn(page, "alice@corp.example", world.pages.password);
  assert.match(await page.locator("h1").first().innerText(), /Your resources/);
});
