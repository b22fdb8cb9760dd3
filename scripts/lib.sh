# What the scripts share. Read by bash with `. scripts/lib.sh`; changes nothing by itself.
#
# Every package that is missing is installed through the machine's own package manager, as root: directly where we are
# root, with sudo where we are not, and only when something is missing.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"
began=$SECONDS

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; else bold='' dim='' red='' green='' plain=''; fi

say() { printf '%s==>%s %s %s(%d s)%s\n' "$bold" "$plain" "$*" "$dim" $((SECONDS - began)) "$plain"; }
fail() { printf '%serror:%s %s\n' "$red" "$plain" "$*" >&2; exit 1; }

# as_root COMMAND...: runs a command as root.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "this needs root and there is no sudo: run it as root: $*"
    fi
}

# need_toolchain: says what is missing if there is no Rust toolchain, or too old a one.
need_toolchain() {
    command -v cargo >/dev/null ||
        fail "there is no Rust toolchain. Install one from https://rustup.rs, then run this again."
    local need have
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$need" "${have%%-*}" | sort -V | head -1)" = "$need" ] ||
        fail "Rust $need or later is needed, and this is $have. Run: rustup update stable"
}

# need_packages NAME...: installs those Debian packages that are missing.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || fail "install these with your package manager, then run this again: ${missing[*]}"
    say "Installing ${missing[*]}"
    as_root true || fail "installing these needs root, and sudo refuses: ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get could not install: ${missing[*]}"
}

# build_packages, lab_packages: what building, and what the machines of the lab, need.
build_packages() { need_packages build-essential ca-certificates; }
lab_packages() {
    need_packages iproute2 util-linux procps nftables tcpdump socat curl python3 iputils-ping dnsutils iperf3 nmap \
        ncat openssl openssh-server openssh-client hping3 python3-scapy wireguard-tools wireguard-go systemd chromium \
        chromium-driver dbus-daemon dbus-bin
}

# idp_packages: the OpenID-certified provider against which sign-in is tested, and what drives the browser.
idp_packages() {
    command -v npm >/dev/null || need_packages nodejs npm
    say "Installing what the sign-in and page tests run (npm)"
    tests/idp/install
    tests/pages/install
}

# lab_tools: builds the stock WireGuard client of crates.io once; $tools is where it is.
lab_tools() {
    local target
    target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
    tools=$target/tools
    [ -x "$tools/bin/boringtun-cli" ] && return
    say "Building boringtun-cli once"
    CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --root "$tools" --version 0.7.1 boringtun-cli
}

# need_nextest: finds cargo-nextest, or builds it once into the user's cache. Returns 1 if there is none to be had.
need_nextest() {
    local tools=${XDG_CACHE_HOME:-$HOME/.cache}/postern/tools
    PATH="$PATH:$tools/bin"
    command -v cargo-nextest >/dev/null && return 0
    say "Building cargo-nextest once (some minutes)"
    cargo install --quiet --locked --root "$tools" --version 0.9.151 cargo-nextest
}

# root_runner: lets cargo start test programs as root, because the lab makes namespaces; building stays with the user.
root_runner() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null || fail "the lab needs root, and there is no sudo: run this as root"
    # Not `sudo -v`: it asks for a password even where none is needed for commands.
    sudo true || fail "the lab needs root, and sudo refuses: run this as root"
    while sleep 50; do sudo -n true || exit; done & # the password is asked for once, not again after some minutes
    # cargo cuts the runner at every space, and a PATH may have some (Windows' own do): a file says it instead.
    local triple runner
    runner=$(mktemp /tmp/postern-runner.XXXXXX)
    printf '%s\n' 'exec sudo -E env "PATH=$PATH" "$@"' >"$runner"
    trap "kill $! 2>/dev/null; rm -f $runner" EXIT
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${triple}_RUNNER=sh $runner"
}

# need_namespaces: tells early, and clearly, that a container forbids what the lab does.
need_namespaces() {
    as_root true || fail "the lab needs root, and sudo refuses: run this as root"
    as_root unshare --net --mount --pid --fork true 2>/dev/null ||
        fail "this machine does not let root make namespaces (a container without --privileged?): the lab cannot run here"
    [ -c /dev/net/tun ] || as_root sh -c 'modprobe tun 2>/dev/null; [ -c /dev/net/tun ]' ||
        fail "/dev/net/tun is missing: load the module tun, or give the device to the container"
}
