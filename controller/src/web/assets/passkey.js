// Asks the browser for a passkey, and sends its answer by the form that asked.
//
// A form with data-passkey="create" or "get" holds the options for the browser in data-options. It stays hidden where the
// browser cannot; the answer goes into its field `credential`. This script speaks to nobody itself.
"use strict";

const supported = globalThis.PublicKeyCredential?.parseCreationOptionsFromJSON
  && globalThis.PublicKeyCredential.parseRequestOptionsFromJSON;

async function ask(kind, options) {
  const publicKey = kind === "create"
    ? PublicKeyCredential.parseCreationOptionsFromJSON(options)
    : PublicKeyCredential.parseRequestOptionsFromJSON(options);
  return kind === "create" ? navigator.credentials.create({ publicKey }) : navigator.credentials.get({ publicKey });
}

function prepare(form) {
  form.hidden = false;
  const alert = form.querySelector("[role=alert]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    alert.hidden = true;
    try {
      const credential = await ask(form.dataset.passkey, JSON.parse(form.dataset.options));
      form.elements.credential.value = JSON.stringify(credential.toJSON());
      form.submit();
    } catch (error) {
      const known = error.name === "InvalidStateError";
      alert.textContent = known ? "This device has a passkey for you already." : "No passkey was used. Try again, or go on another way.";
      alert.hidden = false;
      button.disabled = false;
    }
  });
}

if (supported) document.querySelectorAll("form[data-passkey]").forEach(prepare);
