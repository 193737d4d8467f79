# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The part `glib` of scripts/testbed: GLib with its headers.

glib_recipe=1 # raise it when what is fetched changes: every cache then fetches it anew

glib_begin() {
  glib_dir=$cache/glib-$glib_recipe
}

glib_complete() {
  [[ -d $glib_dir ]]
}

glib_print() {
  echo "GLIB=$glib_dir/root"
}

# The packages without what they depend on: it would be all that a Debian needs to build programs.
glib_fetch() {
  local part=$work/glib packages=(libglib2.0-dev libpcre2-8-0) library
  # What the machine's own compiler makes of it has to run with the machine's own C library.
  read_lists "$(own_suite)"
  library=$(own apt-cache depends libglib2.0-dev | sed -n 's/.*Depends: \(libglib2.0-0[^ ]*\)$/\1/p')
  packages+=("$library")
  begin_step "GLib $(version "$library")" "$(own apt-get download -qq --print-uris "${packages[@]}" | total)"
  download "${packages[@]}"
  unpack "$part"
  mv -T "$part" "$glib_dir"
  end_step
}
