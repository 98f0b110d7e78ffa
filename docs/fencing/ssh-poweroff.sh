#!/bin/sh
# Has $CAIRN_NODE power itself off at once. It counts only if the node itself answers: one that is
# frozen, cut off or dead already is not known to be off, and then this fails.
#
# /etc/cairn/fence.conf:
#   ssh_user=root                    with a key that both nodes have for each other
set -eu
. "${CAIRN_FENCE_CONF:-/etc/cairn/fence.conf}"
host=${CAIRN_ADDRESS%:*}
host=${host#[}
host=${host%]}
# "o" powers off without syncing; the answer comes before.
said=$(ssh -o BatchMode=yes -o ConnectTimeout=5 "${ssh_user:-root}@$host" \
    'echo going; (sleep 1; echo o > /proc/sysrq-trigger) >/dev/null 2>&1 &')
[ "$said" = going ] || { echo "$CAIRN_NODE did not answer" >&2; exit 1; }
sleep 2
# It must not answer any more.
if ssh -o BatchMode=yes -o ConnectTimeout=3 "${ssh_user:-root}@$host" true 2>/dev/null; then
    echo "$CAIRN_NODE is still on" >&2
    exit 1
fi
