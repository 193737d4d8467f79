# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The part `dpdk` of scripts/testbed: DPDK's testpmd, with the drivers that its vhost-user ports take.

dpdk_recipe=1 # raise it when what is fetched changes: every cache then fetches it anew

dpdk_begin() {
  dpdk_dir=$cache/dpdk-$dpdk_recipe
}

dpdk_complete() {
  [[ -d $dpdk_dir ]]
}

dpdk_print() {
  echo "TESTPMD=$dpdk_dir/testpmd"
}

dpdk_fetch() {
  local part=$work/dpdk libraries=usr/lib/x86_64-linux-gnu drivers driver options=()
  read_lists "${suites[@]}"
  begin_step "DPDK $(version dpdk-dev)" "$(own apt-get install -qq --print-uris dpdk-dev | total)"
  download_with_dependencies dpdk-dev
  unpack "$part"
  # What programs are built with, 130 MB.
  rm -rf "$part"/root/{usr/include,"$libraries"/*.a}
  drivers=("$part/root/$libraries"/dpdk/pmds-*)
  for driver in bus_vdev mempool_ring net_vhost; do
    options+=("-d \"\$root${drivers[0]#"$part/root"}/librte_$driver.so\"")
  done
  wrapper "$part/testpmd" dpdk-testpmd "${options[*]}"
  "$part/testpmd" --help >"$work/log" 2>&1 || fail_step
  mv -T "$part" "$dpdk_dir"
  end_step
}
