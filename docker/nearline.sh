#!/bin/sh
# `nearline VERB` inside the image. The compiled kernels lie in /opt/kernels, in a folder that must be writable, as it is locked even
# to be read. Where the root file system is read-only, a writable NEARLINE_CACHE_DIR gets a copy.
set -eu
kernels=/opt/kernels
if [ "${NEARLINE_CACHE_DIR:-$kernels}" != "$kernels" ] && [ ! -e "$NEARLINE_CACHE_DIR/nearline" ]; then
    cp -R "$kernels/nearline" "$NEARLINE_CACHE_DIR/.nearline.$$"
    mv "$NEARLINE_CACHE_DIR/.nearline.$$" "$NEARLINE_CACHE_DIR/nearline"
fi
exec python /opt/nearline/nearline.py "$@"
