// A certified OpenID provider (npm's oidc-provider) with people for tests. Everything about the protocol is its own;
// here are only the people, one client, and a plain sign-in form.
//
// --redirect URL   where the client is sent back to; may be given several times
// --port N         0, the default: any free port
// --host ADDRESS   127.0.0.1 by default: where it listens, and the host in its issuer
// --name NAME      the host in its issuer instead
// --certificate FILE, --key FILE   PEM: it speaks TLS then
// --logout URL    where it tells of logouts (back channel)
// --users FILE     JSON: {"login": {"password", "email", "groups", "acr", "amr"}}; the people below by default
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { createPrivateKey, generateKeyPairSync, sign } from "node:crypto";
import Provider from "oidc-provider";
import MemoryAdapter from "oidc-provider/lib/adapters/memory_adapter.js";

const { values: options } = parseArgs({
  options: {
    redirect: { type: "string", multiple: true, default: [] },
    port: { type: "string", default: "0" },
    host: { type: "string", default: "127.0.0.1" },
    name: { type: "string" },
    certificate: { type: "string" },
    key: { type: "string" },
    logout: { type: "string" },
    users: { type: "string" },
  },
});

const CLIENT = { id: "postern", secret: "a-client-secret-for-tests" };
const users = options.users ? JSON.parse(readFileSync(options.users, "utf8")) : {
  alice: { password: "alice-password", email: "alice@corp.example", groups: ["staff", "payroll"], acr: "urn:corp:mfa", amr: ["pwd", "otp"] },
  bob: { password: "bob-password", email: "bob@corp.example", groups: [] },
  // The provider says nothing about this one's groups: unknown, which is not the same as none.
  mallory: { password: "mallory-password", email: "mallory@corp.example" },
};

const server = options.certificate
  ? createTlsServer({ cert: readFileSync(options.certificate), key: readFileSync(options.key) })
  : createServer();
await new Promise((done) => server.listen(Number(options.port), options.host, done));
const bracketed = options.host.includes(":") ? `[${options.host}]` : options.host;
const issuer = `${options.certificate ? "https" : "http"}://${options.name ?? bracketed}:${server.address().port}`;

/** People whom the administrator of the provider has disabled: POST /test/disable with their login. How somebody signs in next: POST
 * /test/user {login, acr, amr}. */
const gone = new Set();

/** Its signing keys by their names; the newest signs, and it alone is published. */
const keys = {};
let newest;
function makeKey() {
  newest = `test-${Object.keys(keys).length + 1}`;
  const key = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ format: "jwk" });
  keys[newest] = { ...key, kid: newest, use: "sig", alg: "RS256" };
}

/** How often a refresh token of somebody was exchanged: GET /test/refreshes, {login: number}. */
const refreshes = {};

/** Makes the provider with the newest key. What it knows of sessions and tokens is kept outside of it, and stays. */
const provide = () => new Provider(issuer, {
  adapter: (model) => new MemoryAdapter(model),
  clients: [{
    client_id: CLIENT.id,
    client_secret: CLIENT.secret,
    redirect_uris: options.redirect,
    response_types: ["code"],
    grant_types: ["authorization_code", "refresh_token"],
    require_auth_time: true,
    ...(options.logout && { backchannel_logout_uri: options.logout, backchannel_logout_session_required: true }),
  }],
  jwks: { keys: [keys[newest]] },
  acrValues: ["urn:corp:mfa"],
  cookies: { keys: ["a-cookie-key-for-tests"] },
  scopes: ["openid", "profile", "email", "groups", "offline_access"],
  issueRefreshToken: async (_, client) => client.grantTypeAllowed("refresh_token"),
  rotateRefreshToken: true,
  claims: { openid: ["sub", "acr", "amr", "auth_time"], profile: ["preferred_username"], email: ["email", "email_verified"], groups: ["groups"], iss: null, sid: null },
  conformIdTokenClaims: false, // the ID token itself carries the claims of the scopes
  features: { devInteractions: { enabled: false }, rpInitiatedLogout: { enabled: Boolean(options.logout) }, backchannelLogout: { enabled: Boolean(options.logout) } },
  // Its guard against requests to private addresses is right for the world, and the lab is all private addresses.
  fetch: (url, { dispatcher: _, ...rest }) => fetch(url, rest),
  pkce: { required: () => true },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  findAccount: async (_, login) => !users[login] || gone.has(login) ? undefined : {
    accountId: login,
    claims: async () => ({
      sub: login, preferred_username: login, email: users[login].email, email_verified: true,
      ...(users[login].groups && { groups: users[login].groups }),
    }),
  },
  // Everybody's consent is taken as given: the client belongs to the people's own organisation.
  loadExistingGrant: async (context) => {
    const { client, session, params } = context.oidc;
    const grant = new provider.Grant({ clientId: client.clientId, accountId: session.accountId });
    grant.addOIDCScope(params.scope);
    await grant.save();
    return grant;
  },
});
let provider, rest;
function begin() {
  makeKey();
  provider = provide();
  rest = provider.callback();
  provider.on("server_error", (_, error) => console.error(error));
  provider.on("backchannel.error", (_, error) => console.error("backchannel", error, error.cause));
  provider.on("grant.error", (_, error) => console.error("grant", error.message, error.error_detail));
  provider.on("grant.success", ({ oidc }) => {
    if (oidc.params?.grant_type !== "refresh_token") return;
    const login = oidc.account?.accountId ?? oidc.entities?.RefreshToken?.accountId;
    refreshes[login] = (refreshes[login] ?? 0) + 1;
  });
}
begin();

const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
const form = (uid, text) => `<!doctype html><html lang="en"><meta charset="utf-8"><title>Corp SSO</title>
  <h1>Corp SSO</h1><p>${escape(text)}</p>
  <form method="post" action="/interaction/${escape(uid)}"><label>Login <input name="login"></label>
  <label>Password <input name="password" type="password"></label><button>Sign in</button></form>
  <form method="post" action="/interaction/${escape(uid)}"><input type="hidden" name="cancel" value="yes"><button>Cancel</button></form></html>`;

async function interaction(request, response, uid) {
  if (request.method === "GET") {
    await provider.interactionDetails(request, response);
    response.setHeader("content-type", "text/html; charset=utf-8");
    return response.end(form(uid, "Who are you?"));
  }
  let body = "";
  for await (const chunk of request) body += chunk;
  const fields = new URLSearchParams(body);
  if (fields.has("cancel")) {
    const said = { error: "access_denied", error_description: "the person cancelled" };
    return provider.interactionFinished(request, response, said, { mergeWithLastSubmission: false });
  }
  const user = users[fields.get("login")];
  if (!user || user.password !== fields.get("password")) {
    response.statusCode = 403;
    response.setHeader("content-type", "text/html; charset=utf-8");
    return response.end(form(uid, "Wrong login or password."));
  }
  const login = { accountId: fields.get("login"), acr: user.acr, amr: user.amr ?? ["pwd"], remember: false };
  return provider.interactionFinished(request, response, { login });
}

server.on("request", async (request, response) => {
  if (request.url === "/test/disable") {
    let login = "";
    for await (const chunk of request) login += chunk;
    gone.add(login.trim());
    return response.end();
  }
  // Another signing key from now on, under another name: POST /test/rotate
  if (request.url === "/test/rotate") {
    begin();
    return response.end();
  }
  if (request.url === "/test/refreshes") return response.end(JSON.stringify(refreshes));
  if (request.url === "/test/user") {
    let text = "";
    for await (const chunk of request) text += chunk;
    const { login, ...said } = JSON.parse(text);
    if (users[login]) Object.assign(users[login], said);
    else response.statusCode = 404;
    return response.end();
  }
  // A logout token signed by the key that the header names, or the newest, with claims of the test's choice: POST /test/logout-token {header, claims}
  if (request.url === "/test/logout-token") {
    let text = "";
    for await (const chunk of request) text += chunk;
    const { header, claims } = JSON.parse(text);
    const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const signed = `${part({ alg: "RS256", typ: "logout+jwt", kid: newest, ...header })}.${part(claims)}`;
    const signature = sign("sha256", Buffer.from(signed), createPrivateKey({ key: keys[header.kid] ?? keys[newest], format: "jwk" })).toString("base64url");
    return response.end(`${signed}.${signature}`);
  }
  const uid = request.url.match(/^\/interaction\/([\w-]+)$/)?.[1];
  if (!uid) return rest(request, response);
  interaction(request, response, uid).catch((error) => {
    console.error(error.message);
    response.statusCode = 400;
    response.end();
  });
});
console.log(JSON.stringify({ issuer, client_id: CLIENT.id, client_secret: CLIENT.secret }));
