#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Reduces the Rust static library to one relocatable object: link-core.sh LIBRARY GLUE_H OUT, with AR, LD, OBJCOPY set.
#
# Only what the entry points of glue.h reach is kept, and nothing else of it is visible outside. memcpy and its kin are
# the kernel's: the library's own are left out, so that anything else that is missing is seen by modpost.
set -eu
lib=$1 header=$2 out=$3
dir=$(dirname "$out")/.core
rm -rf "$dir"
mkdir "$dir"
keep= need=
for entry in $(sed -n 's/^FH_RUST([^,]*, *\([a-z0-9_]*\),.*/\1/p' "$header"); do
	keep="$keep --keep-global-symbol=$entry"
	need="$need -u $entry"
	first=${first:-$entry}
done
cp "$lib" "$dir/lib.a"
"$AR" d "$dir/lib.a" $("$AR" t "$dir/lib.a" | grep compiler_builtins)
"$LD" -r --gc-sections --entry="$first" $need -o "$dir/all.o" "$dir/lib.a"
"$OBJCOPY" --strip-debug --remove-section=.eh_frame --remove-section=.rela.eh_frame --remove-section=.comment \
	--remove-section=.note.GNU-stack $keep "$dir/all.o" "$out"
rm -rf "$dir"
