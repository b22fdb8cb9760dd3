// A transmitter of security events (Shared Signals Framework 1.0) for tests: discovery, keys, signatures, push (RFC 8935), poll
// (RFC 8936), verification. What it tells, a test tells it.
//
// --host ADDRESS, --name NAME, --port N   where it listens, and the host in its issuer
// --certificate FILE, --key FILE          PEM
// --push URL, --push-token TOKEN          where it pushes, and what it shows there
// --api-token TOKEN                       what a receiver shows that polls or asks for a verification
// --stream-id ID, --audience URL          of the stream that is pushed
// --verification-port N                   where it takes requests for a verification: another origin than the issuer's
//
// POST /test/token {header, claims}       answers with a signed token; claims of null are left out
// POST /test/push TOKEN                   pushes it, and answers {"status", "body"}
// POST /test/offer {"jti", "token"}       offers it to whoever polls, and answers with what the receiver said of it
// POST /test/rotate                       signs with another key from now on
import { createServer } from "node:https";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { generateKeyPairSync, randomUUID, sign } from "node:crypto";

const names = ["host", "name", "port", "certificate", "key", "push", "push-token", "api-token", "stream-id", "audience", "verification-port"];
const { values: options } = parseArgs({ options: Object.fromEntries(names.map((name) => [name, { type: "string" }])) });
const issuer = `https://${options.name}:${options.port}`;

let number = 0;
let key;
const keys = [];
function rotate() {
  number += 1;
  const pair = generateKeyPairSync("ec", { namedCurve: "P-256" });
  key = { kid: `t-${number}`, secret: pair.privateKey };
  keys.splice(0, keys.length, { ...pair.publicKey.export({ format: "jwk" }), kid: key.kid, use: "sig", alg: "ES256" });
}
rotate();

const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
function token(header, claims) {
  const whole = Object.entries({
    iss: issuer, aud: options.audience, iat: Math.floor(Date.now() / 1000), jti: randomUUID(), ...claims,
  }).filter(([, value]) => value !== null);
  const signed = `${part({ alg: "ES256", typ: "secevent+jwt", kid: key.kid, ...header })}.${part(Object.fromEntries(whole))}`;
  const signature = sign("sha256", Buffer.from(signed), { key: key.secret, dsaEncoding: "ieee-p1363" });
  return `${signed}.${signature.toString("base64url")}`;
}

async function push(text) {
  const answer = await fetch(options.push, {
    method: "POST",
    headers: { "content-type": "application/secevent+jwt", accept: "application/json", authorization: `Bearer ${options["push-token"]}` },
    body: text,
  });
  return { status: answer.status, body: await answer.text() };
}

/** Tokens that wait for a poll, by `jti`, and who waits to hear what became of them. */
const offered = new Map();
const waiting = new Map();
let woken = () => {};

async function poll({ ack = [], setErrs = {}, maxEvents = 100, returnImmediately = false }) {
  for (const jti of ack) told(jti, { ack: true });
  for (const [jti, error] of Object.entries(setErrs)) told(jti, error);
  if (offered.size === 0 && !returnImmediately) {
    await new Promise((done) => { woken = done; setTimeout(done, 15_000); });
  }
  const sets = Object.fromEntries([...offered].slice(0, maxEvents));
  return { sets, moreAvailable: offered.size > maxEvents };
}
function told(jti, answer) {
  offered.delete(jti);
  waiting.get(jti)?.(answer);
  waiting.delete(jti);
}
function offer(jti, text) {
  offered.set(jti, text);
  const answer = new Promise((done) => waiting.set(jti, done));
  woken();
  return answer;
}

async function read(request) {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text;
}
const routes = {
  "/.well-known/ssf-configuration": async () => ({
    spec_version: "1_0", issuer, jwks_uri: `${issuer}/jwks`, verification_endpoint: `https://${options.name}:${options["verification-port"] ?? options.port}/verify`,
    delivery_methods_supported: ["urn:ietf:rfc:8935", "urn:ietf:rfc:8936"], critical_subject_members: ["org_unit"],
  }),
  "/jwks": async () => ({ keys }),
  "/verify": async (request) => {
    const { stream_id, state } = JSON.parse(await read(request));
    const events = { "https://schemas.openid.net/secevent/ssf/event-type/verification": { state } };
    const text = token({}, { sub_id: { format: "opaque", id: stream_id }, events });
    setTimeout(() => push(text).catch((error) => console.error("verification", error.cause ?? error)), 10);
    return null;
  },
  "/poll": async (request) => poll(JSON.parse(await read(request))),
  "/test/token": async (request) => {
    const { header, claims } = JSON.parse(await read(request));
    return token(header, claims);
  },
  "/test/push": async (request) => push(await read(request)),
  "/test/offer": async (request) => {
    const { jti, token } = JSON.parse(await read(request));
    return offer(jti, token);
  },
  "/test/rotate": async () => rotate() ?? null,
};

const tls = { cert: readFileSync(options.certificate), key: readFileSync(options.key) };
async function answer(request, response) {
  try {
    const elsewhere = request.socket.localPort !== Number(options.port);
    const route = !elsewhere || request.url === "/verify" ? routes[request.url] : undefined;
    const guarded = request.url === "/poll" || request.url === "/verify";
    if (!route) response.statusCode = 404;
    else if (guarded && request.headers.authorization !== `Bearer ${options["api-token"]}`) response.statusCode = 401;
    else {
      const answer = await route(request);
      if (answer === null) response.statusCode = 204;
      else if (typeof answer === "string") return response.end(answer);
      else {
        response.setHeader("content-type", "application/json");
        return response.end(JSON.stringify(answer));
      }
    }
  } catch (error) {
    console.error(request.url, error.cause ?? error);
    response.statusCode = 500;
  }
  response.end();
}
for (const port of [options.port, options["verification-port"]].filter(Boolean)) {
  createServer(tls, answer).listen(Number(port), options.host);
}
