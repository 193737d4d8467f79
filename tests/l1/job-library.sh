# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What a job in a host under test can call.

# pci_functions VENDOR:DEVICE: the addresses of all such functions; the ids as `lspci -n` shows them.
pci_functions() {
  local function
  for function in /sys/bus/pci/devices/*; do
    [ "$(cat "$function/vendor"):$(cat "$function/device")" != "0x${1%:*}:0x${1#*:}" ] || echo "${function##*/}"
  done
}

# give_to_vfio ADDRESS: takes this function from its driver, gives it to vfio-pci, and prints its name among the devices
# of VFIO (in /sys/class/vfio-dev and /dev/vfio/devices).
give_to_vfio() {
  local function=/sys/bus/pci/devices/$1
  [ ! -e "$function/driver" ] || echo "$1" >"$function/driver/unbind"
  echo vfio-pci >"$function/driver_override"
  echo "$1" >/sys/bus/pci/drivers_probe
  ls "$function/vfio-dev"
}
