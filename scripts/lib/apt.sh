# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# An apt of scripts/testbed's own: the host's mirror, proxies and certificates, but no installed packages, no hooks, no
# pins.

# Where QEMU and kernels of the versions that are needed are.
suites=(trixie trixie-backports)

# The suite whose programs run on this machine without a C library of their own.
own_suite() {
  # shellcheck source=/dev/null
  (. /etc/os-release && echo "${VERSION_CODENAME:-sid}")
}

# read_lists SUITE...: from the first mirror that has them; of several versions, the last suite's is taken. The lists of
# the architectures in foreign=() are read too.
read_lists() {
  mkdir -p "$work"/{state,lists/partial,apt/archives/partial}
  : >"$work/state/status"
  local keyring mirror suite hint architectures=(amd64 "${foreign[@]}")
  for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do [[ ! -e $keyring ]] || break; done
  [[ -e $keyring ]] || die "Debian's signing keys are missing: install the package debian-archive-keyring"
  apt_configuration "${!#}" >"$work/apt.conf"
  for mirror in $(mirrors); do
    begin_step "package lists of $*"
    for suite in "$@"; do
      echo "deb [arch=$(IFS=, && echo "${architectures[*]}") signed-by=$keyring] $mirror $suite main"
    done >"$work/sources.list"
    if own apt-get update -qq >"$work/log" 2>&1; then
      end_step
      return
    fi
    echo " failed" >&2
    sed 's/^/  /' "$work/log" >&2
    ! grep -qE "NO_PUBKEY|Missing key" "$work/log" || hint=" (signed with new keys: upgrade debian-archive-keyring)"
  done
  die "no Debian mirror could be read for $*${hint-}; see TESTBED_MIRROR in scripts/testbed --help"
}
foreign=()

# apt_configuration DEFAULT-SUITE
apt_configuration() {
  apt-config dump | grep '^Acquire::' | grep -vE '^Acquire::(IndexTargets|Languages|CompressionTypes|GzipIndexes)'
  cat <<END
Dir::Etc { main "/dev/null"; parts "/dev/null"; preferences "/dev/null"; preferencesparts "/dev/null"; };
Dir::Etc { sourcelist "$work/sources.list"; sourceparts "/dev/null"; };
Dir::State "$work/state"; Dir::State { status "$work/state/status"; lists "$work/lists"; };
Dir::Cache "$work/apt";
APT::Architecture "amd64"; APT::Architectures { $(printf '"%s"; ' "${architectures[@]}")};
APT::Default-Release "$1";
APT::Install-Recommends "false";
APT::Sandbox::User "$(id -un)";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Debug::NoLocking "1";
END
}

# The repositories the host itself uses, as apt sees them. One that is not Debian's has no such suites, or no such signature.
mirrors() {
  if [[ -n ${TESTBED_MIRROR-} ]]; then
    echo "$TESTBED_MIRROR"
  else
    apt-get update --print-uris 2>/dev/null | sed -n "s|^'\(.*\)/dists/[^/]*/InRelease'.*|\1|p" | grep -v security | uniq
  fi
}

own() {
  APT_CONFIG=$work/apt.conf "$@"
}

download_with_dependencies() {
  own apt-get install -y -qq --download-only "$@" >"$work/log" 2>&1 || fail_step
}

download() {
  (cd "$work/apt/archives" && own apt-get download -qq "$@") >"$work/log" 2>&1 || fail_step
}

# unpack PART: what was fetched last becomes the part's root folder.
unpack() {
  local deb root=$1/root
  mkdir -p "$root"
  for deb in "$work"/apt/archives/*.deb; do dpkg-deb -x "$deb" "$root"; done
  rm -rf "$work"/apt/archives/*.deb "${root:?}"/{etc,var} "$root"/usr/share/{doc,man,locale,bug,lintian,info}
}

# wrapper FILE PROGRAM [ARGUMENTS]: a program that runs with the loader and the libraries it was fetched with.
wrapper() {
  cat >"$1" <<END
#!/bin/sh
root=\$(dirname -- "\$(readlink -f -- "\$0")")/root
exec "\$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "\$root/usr/lib/x86_64-linux-gnu" \\
  "\$root/usr/bin/$2" ${3-} "\$@"
END
  chmod +x "$1"
}

# version PACKAGE: without the epoch and Debian's revision.
version() {
  own apt-cache show --no-all-versions "$1" | sed -n 's/^Version: \([0-9]*:\)\?\([0-9.]*\).*/\2/p'
}

# The size of what a list of `apt-get --print-uris` names.
total() {
  awk '{ bytes += $3 } END { printf ", %d MB", bytes / 1000000 }'
}
