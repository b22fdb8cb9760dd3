// Makes a WireGuard key pair in the browser, and completes the configuration with the private key, which never leaves it.
//
// On the form: WebCrypto makes an X25519 pair; the private key waits in this tab's session storage under its public key.
// On the result: it is taken out again, put into the text, the download and a QR code, and forgotten.
// The QR encoder follows ISO/IEC 18004: byte mode, error correction level L.
"use strict";

const STORE = "postern-private-key";
const byId = (id) => document.getElementById(id);
const base64 = (bytes) => btoa(String.fromCharCode(...bytes));

async function makePair() {
  const pair = await crypto.subtle.generateKey({ name: "X25519" }, true, ["deriveBits"]);
  const pkcs8 = new Uint8Array(await crypto.subtle.exportKey("pkcs8", pair.privateKey));
  const secret = pkcs8.slice(-32); // RFC 8410 section 7: the key is the last 32 bytes
  secret[0] &= 248;
  secret[31] = (secret[31] & 127) | 64; // RFC 7748 section 5, as `wg genkey` writes keys
  const open = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
  return { secret: base64(secret), open: base64(open) };
}

function prepareForm() {
  const form = byId("wireguard");
  if (!form || !globalThis.crypto?.subtle) return;
  byId("make").hidden = false;
  byId("make-keys").addEventListener("click", async () => {
    if (!byId("name").reportValidity()) return;
    try {
      const pair = await makePair();
      sessionStorage.setItem(STORE, JSON.stringify(pair));
      byId("public_key").value = pair.open;
      form.requestSubmit();
    } catch {
      const alert = byId("make-alert");
      alert.className = "alert";
      alert.textContent = "This browser cannot make WireGuard keys. Use a newer one, or paste a public key of your own.";
      alert.hidden = false;
    }
  });
}

function completeResult() {
  const result = byId("result");
  if (!result) return;
  const text = byId("text");
  const copy = byId("copy");
  copy.hidden = !navigator.clipboard;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text.textContent);
    byId("status").textContent = "Copied.";
  });
  const kept = JSON.parse(sessionStorage.getItem(STORE) ?? "null");
  sessionStorage.removeItem(STORE);
  if (kept?.open !== result.dataset.publicKey) return;
  text.textContent = text.textContent.replace(result.dataset.place, kept.secret);
  byId("paste-hint").hidden = true;
  byId("download").href = "data:text/plain;charset=utf-8;base64," + base64(new TextEncoder().encode(text.textContent));
  const modules = qrModules(new TextEncoder().encode(text.textContent));
  if (modules) {
    byId("qr").replaceChildren(qrDrawing(modules));
    byId("scan").hidden = false;
  }
}

function qrDrawing(modules) {
  const size = modules.length + 8; // a quiet zone of four modules (ISO/IEC 18004 section 5.3.8)
  const element = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  let path = "";
  modules.forEach((row, y) => row.forEach((dark, x) => { if (dark) path += `M${x + 4} ${y + 4}h1v1h-1z`; }));
  const drawing = element("svg", {
    class: "qr", role: "img", "aria-label": "QR code of the configuration", viewBox: `0 0 ${size} ${size}`,
    "shape-rendering": "crispEdges",
  });
  drawing.append(element("rect", { class: "qr-light", width: size, height: size }));
  drawing.append(element("path", { class: "qr-dark", d: path }));
  return drawing;
}

// Error correction level L, versions 1 to 40: check codewords in a block, and blocks (ISO/IEC 18004 table 9).
const CHECK = [7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28, 28, 28, 30, 30, 26, 28,
  ...Array(14).fill(30)];
const BLOCKS = [1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8, 8, 9, 9, 10, 12, 12, 12, 13, 14, 15, 16,
  17, 18, 19, 19, 20, 21, 22, 24, 25];

function rawCodewords(version) {
  let bits = (16 * version + 128) * version + 64;
  if (version >= 2) {
    const aligned = Math.floor(version / 7) + 2;
    bits -= (25 * aligned - 10) * aligned - 55;
    if (version >= 7) bits -= 36;
  }
  return bits >> 3;
}

function times(a, b) { // in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1
  let product = 0;
  for (let i = 7; i >= 0; i--) {
    product = (product << 1) ^ ((product >> 7) * 0x11d);
    if ((b >> i) & 1) product ^= a;
  }
  return product;
}

function checkCodewords(block, count) {
  const divisor = Array(count).fill(0);
  divisor[count - 1] = 1;
  for (let i = 0, root = 1; i < count; i++, root = times(root, 2)) {
    for (let j = 0; j < count; j++) divisor[j] = times(divisor[j], root) ^ (divisor[j + 1] ?? 0);
  }
  const rest = Array(count).fill(0);
  for (const byte of block) {
    const factor = byte ^ rest.shift();
    rest.push(0);
    divisor.forEach((coefficient, i) => { rest[i] ^= times(coefficient, factor); });
  }
  return rest;
}

function codewords(bytes) {
  let version = 1;
  const room = (v) => rawCodewords(v) - CHECK[v - 1] * BLOCKS[v - 1];
  const needed = (v) => Math.ceil((4 + (v < 10 ? 8 : 16) + 8 * bytes.length) / 8);
  while (version <= 40 && needed(version) > room(version)) version++;
  if (version > 40) return null;
  const bits = [];
  const put = (value, length) => { for (let i = length - 1; i >= 0; i--) bits.push((value >> i) & 1); };
  put(4, 4); // byte mode
  put(bytes.length, version < 10 ? 8 : 16);
  for (const byte of bytes) put(byte, 8);
  put(0, Math.min(4, room(version) * 8 - bits.length));
  while (bits.length % 8) bits.push(0);
  const content = [];
  for (let i = 0; i < bits.length; i += 8) content.push(parseInt(bits.slice(i, i + 8).join(""), 2));
  for (let pad = 0xec; content.length < room(version); pad ^= 0xec ^ 0x11) content.push(pad);

  const blocks = BLOCKS[version - 1];
  const check = CHECK[version - 1];
  const short = Math.floor(rawCodewords(version) / blocks) - check;
  const longer = rawCodewords(version) % blocks;
  const parts = [];
  for (let i = 0, at = 0; i < blocks; i++) {
    const length = short + (i >= blocks - longer ? 1 : 0);
    const data = content.slice(at, at + length);
    at += length;
    parts.push({ data, check: checkCodewords(data, check) });
  }
  const woven = [];
  for (let i = 0; i <= short; i++) for (const part of parts) if (i < part.data.length) woven.push(part.data[i]);
  for (let i = 0; i < check; i++) for (const part of parts) woven.push(part.check[i]);
  return { version, woven };
}

function qrModules(bytes) {
  const coded = codewords(bytes);
  if (!coded) return null;
  const { version, woven } = coded;
  const size = 17 + 4 * version;
  const dark = Array.from({ length: size }, () => Array(size).fill(false));
  const fixed = Array.from({ length: size }, () => Array(size).fill(false));
  const set = (x, y, value) => { dark[y][x] = Boolean(value); fixed[y][x] = true; };

  for (let i = 0; i < size; i++) { set(6, i, i % 2 === 0); set(i, 6, i % 2 === 0); }
  for (const [cx, cy] of [[3, 3], [size - 4, 3], [3, size - 4]]) {
    for (let dy = -4; dy <= 4; dy++) for (let dx = -4; dx <= 4; dx++) {
      const ring = Math.max(Math.abs(dx), Math.abs(dy));
      const [x, y] = [cx + dx, cy + dy];
      if (x >= 0 && x < size && y >= 0 && y < size) set(x, y, ring !== 2 && ring !== 4);
    }
  }
  if (version >= 2) {
    const count = Math.floor(version / 7) + 2;
    const step = Math.floor((version * 8 + count * 3 + 5) / (count * 4 - 4)) * 2;
    const places = [6];
    for (let at = size - 7; places.length < count; at -= step) places.splice(1, 0, at);
    places.forEach((cy, i) => places.forEach((cx, j) => {
      if ((i === 0 && j === 0) || (i === 0 && j === count - 1) || (i === count - 1 && j === 0)) return;
      for (let dy = -2; dy <= 2; dy++) for (let dx = -2; dx <= 2; dx++) {
        set(cx + dx, cy + dy, Math.max(Math.abs(dx), Math.abs(dy)) !== 1);
      }
    }));
  }
  if (version >= 7) {
    let rest = version;
    for (let i = 0; i < 12; i++) rest = (rest << 1) ^ ((rest >> 11) * 0x1f25);
    const word = (version << 12) | rest;
    for (let i = 0; i < 18; i++) {
      const [a, b] = [size - 11 + (i % 3), Math.floor(i / 3)];
      set(a, b, (word >> i) & 1);
      set(b, a, (word >> i) & 1);
    }
  }
  const format = (mask) => {
    const value = (1 << 3) | mask; // level L
    let rest = value;
    for (let i = 0; i < 10; i++) rest = (rest << 1) ^ ((rest >> 9) * 0x537);
    const word = ((value << 10) | rest) ^ 0x5412;
    const bit = (i) => (word >> i) & 1;
    for (let i = 0; i <= 5; i++) set(8, i, bit(i));
    set(8, 7, bit(6)); set(8, 8, bit(7)); set(7, 8, bit(8));
    for (let i = 9; i < 15; i++) set(14 - i, 8, bit(i));
    for (let i = 0; i < 8; i++) set(size - 1 - i, 8, bit(i));
    for (let i = 8; i < 15; i++) set(8, size - 15 + i, bit(i));
    set(8, size - 8, true);
  };
  format(0);

  let at = 0;
  for (let right = size - 1; right >= 1; right -= 2) {
    if (right === 6) right = 5;
    for (let step = 0; step < size; step++) for (const x of [right, right - 1]) {
      const y = ((right + 1) & 2) === 0 ? size - 1 - step : step;
      if (fixed[y][x] || at >= woven.length * 8) continue;
      dark[y][x] = Boolean((woven[at >> 3] >> (7 - (at & 7))) & 1);
      at++;
    }
  }

  const masks = [
    (x, y) => (x + y) % 2, (x, y) => y % 2, (x) => x % 3, (x, y) => (x + y) % 3,
    (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2, (x, y) => ((x * y) % 2) + ((x * y) % 3),
    (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2, (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2,
  ];
  const apply = (mask) => dark.forEach((row, y) => row.forEach((_, x) => {
    if (!fixed[y][x] && masks[mask](x, y) === 0) row[x] = !row[x];
  }));
  let best = { mask: 0, penalty: Infinity };
  for (let mask = 0; mask < 8; mask++) {
    format(mask);
    apply(mask);
    const penalty = penaltyOf(dark);
    if (penalty < best.penalty) best = { mask, penalty };
    apply(mask); // a mask undoes itself
  }
  format(best.mask);
  apply(best.mask);
  return dark;
}

function penaltyOf(dark) { // ISO/IEC 18004 section 7.8.3.1
  const size = dark.length;
  const columns = dark.map((_, x) => dark.map((row) => row[x]));
  let penalty = 0;
  for (const line of [...dark, ...columns]) {
    const text = line.map(Number).join("");
    for (const run of text.match(/0{5,}|1{5,}/g) ?? []) penalty += run.length - 2;
    for (const pattern of ["10111010000", "00001011101"]) {
      for (let i = text.indexOf(pattern); i >= 0; i = text.indexOf(pattern, i + 1)) penalty += 40;
    }
  }
  let count = 0;
  for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) {
    if (dark[y][x]) count++;
    if (x && y && dark[y][x] === dark[y - 1][x] && dark[y][x] === dark[y][x - 1] && dark[y][x] === dark[y - 1][x - 1]) penalty += 3;
  }
  return penalty + 10 * Math.floor(Math.abs(count * 20 - size * size * 10) / (size * size));
}

prepareForm();
completeResult();
