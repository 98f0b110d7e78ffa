#!/bin/sh
# Powers $CAIRN_NODE off by its management controller, and looks whether it is off.
#
# /etc/cairn/fence.conf:
#   ipmi_host_node1=192.0.2.101      one line a node; - and . in names become _
#   ipmi_user=cairn
#   ipmi_password_file=/etc/cairn/ipmi.password
set -eu
. "${CAIRN_FENCE_CONF:-/etc/cairn/fence.conf}"
name=$(printf %s "$CAIRN_NODE" | tr -c 'A-Za-z0-9' _)
eval "host=\${ipmi_host_$name:-}"
[ -n "$host" ] || { echo "fence.conf has no ipmi_host_$name" >&2; exit 1; }
ask() {
    ipmitool -I lanplus -H "$host" -U "$ipmi_user" -f "$ipmi_password_file" chassis power "$1"
}
ask off >/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do
    case $(ask status) in
    *"is off"*) exit 0 ;;
    esac
    sleep 1
done
echo "$CAIRN_NODE is still on" >&2
exit 1
