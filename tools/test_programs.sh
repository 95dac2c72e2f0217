#!/usr/bin/env bash
# Installs the programs that tests call: on Debian and Ubuntu, as root, without starting a service of theirs.
#
#   tools/test_programs.sh          install what is missing
#   tools/test_programs.sh --list   program and package, a line each
#
# What cannot be had is named in a notice, and the tests that need it are skipped. Never fails.
set -u

PROGRAMS="tshark:tshark capinfos:wireshark-common tcpdump:tcpdump ip:iproute2 tcpreplay:tcpreplay mosquitto:mosquitto
  mosquitto_pub:mosquitto-clients openssl:openssl promtool:prometheus chromium:chromium systemd-analyze:systemd
  systemd-nspawn:systemd-container"
# Not in every release's own suite: the suite of backports, from the same sources, has it.
BACKPORTED="suricata:suricata"

missing() {
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
  done
}

install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

# One by one if they do not come together.
install_each() {
  install "$@" && return
  for package in "$@"; do
    install "$package" || echo "netssmd: notice: could not install $package: tests that need it are skipped"
  done
}

# The machine's own Debian sources, the same host, one suite further.
add_backports() {
  local suite="${VERSION_CODENAME}-backports" list=/etc/apt/sources.list.d/netssmd-backports.list uri
  apt-cache policy | grep -q "a=.*backports\|n=$suite" && return
  uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null |
    sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' | grep -m 1 '/debian/\?$') || return
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$list"
  apt-get update -qq || rm -f "$list"
}

main() {
  if [ "${1:-}" = --list ]; then
    printf '%s\n' $PROGRAMS $BACKPORTED | sed 's/:/ /'
    return
  fi
  local wanted backported
  wanted=$(missing $PROGRAMS) backported=$(missing $BACKPORTED)
  [ -n "$wanted$backported" ] || return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "netssmd: notice: not installed, tests that need them are skipped:" $wanted $backported
    return
  fi
  # A package's service would start at once and take its ports: policy-rc.d forbids it while this runs (invoke-rc.d(8)).
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap "rm -f $policy" EXIT
  fi
  apt-get update -qq
  [ -z "$wanted" ] || install_each $wanted
  if [ -n "$backported" ] && ! install $backported; then
    . /etc/os-release
    add_backports
    install -t "$VERSION_CODENAME-backports" $backported ||
      echo "netssmd: notice: could not install $backported: tests that need it are skipped"
  fi
}

main "$@"
exit 0
