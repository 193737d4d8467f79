# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What the arm64 host does for tests that run guests in it: commands come over a virtio serial port, one number a line;
# number N is the script /work/N. Lines of the guest's console begin with "guest| ", those of its monitor with "qmp| ",
# those of QEMU and of what started it with "vmm| ".

# serve_commands: until one of them powers the host off.
serve_commands() {
  local port=/dev/vport0p1 number status
  mkdir /usr /work /run
  ln -s usr/lib /lib
  mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=262144,ro usr /usr
  mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro work /work
  dmesg -c >/dev/null
  exec 4<"$port"
  echo "l2: ready"
  set +e
  while true; do
    # The port is at its end as long as nobody is at its other end.
    read -r number <&4 || { usleep 20000; continue; }
    # shellcheck source=/dev/null
    (set -eu; . "/work/$number")
    status=$?
    echo "l2: $number ended $status"
  done
}

# guest_start PROGRAM ARGUMENT...: QEMU, or what becomes QEMU; console and monitor are to be at /run/console and /run/qmp.
guest_start() {
  rm -f /run/console /run/qmp.in /run/qmp.out
  mkfifo /run/console /run/qmp.in /run/qmp.out
  marked "guest| " </run/console &
  marked "qmp| " </run/qmp.out &
  { "$@" </dev/null 2>&1; echo "ended $?"; } | marked "vmm| " &
}

# marked MARK: each line as it comes, in one piece.
marked() {
  awk -v mark="$1" '{ sub(/\r$/, ""); print mark $0; fflush() }' 4<&-
}

# guest_monitor JSON: the answer comes on the console.
guest_monitor() {
  echo "$1" >/run/qmp.in
}

# guest_kill: at once, with no warning; nothing of it is left when this returns.
guest_kill() {
  killall -KILL qemu-system-aarch64 2>/dev/null || true
  while pidof qemu-system-aarch64 >/dev/null; do usleep 20000; done
}

# kernel_said PATTERN: the kernel's lines since the last such question.
kernel_said() {
  dmesg -c | grep -E "$1" || true
}
