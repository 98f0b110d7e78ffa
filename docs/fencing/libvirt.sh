#!/bin/sh
# Ends the virtual machine of $CAIRN_NODE by its host, and looks whether it is off.
#
# /etc/cairn/fence.conf:
#   libvirt_uri=qemu+ssh://fence@host.example/system
#   libvirt_domain_node1=vm-node1    where the machine's name is not the node's; - and . become _
set -eu
. "${CAIRN_FENCE_CONF:-/etc/cairn/fence.conf}"
name=$(printf %s "$CAIRN_NODE" | tr -c 'A-Za-z0-9' _)
eval "domain=\${libvirt_domain_$name:-$CAIRN_NODE}"
state() { virsh --connect "$libvirt_uri" domstate "$domain"; }
[ "$(state)" = "shut off" ] || virsh --connect "$libvirt_uri" destroy "$domain" >/dev/null
[ "$(state)" = "shut off" ] || { echo "$domain is still running" >&2; exit 1; }
