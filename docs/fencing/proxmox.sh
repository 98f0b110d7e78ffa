#!/bin/sh
# Stops the virtual machine of $CAIRN_NODE by the Proxmox VE API, and looks whether it is off.
#
# /etc/cairn/fence.conf:
#   proxmox_api=https://pve.example:8006/api2/json
#   proxmox_token='cairn@pve!fence=...'        with VM.PowerMgmt and VM.Audit on the machines
#   proxmox_ca=/etc/cairn/pve-ca.pem
#   proxmox_vm_node1=pve1/qemu/101             host/kind/number; - and . in names become _
set -eu
. "${CAIRN_FENCE_CONF:-/etc/cairn/fence.conf}"
name=$(printf %s "$CAIRN_NODE" | tr -c 'A-Za-z0-9' _)
eval "vm=\${proxmox_vm_$name:-}"
[ -n "$vm" ] || { echo "fence.conf has no proxmox_vm_$name" >&2; exit 1; }
url=$proxmox_api/nodes/$vm/status
ask() {
    # The token stands on standard input: arguments can be seen by everybody.
    printf 'header = "Authorization: PVEAPIToken=%s"\n' "$proxmox_token" |
        curl --silent --show-error --fail --max-time 10 --cacert "$proxmox_ca" --config - "$@"
}
ask --request POST "$url/stop" >/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do
    case $(ask "$url/current") in
    *'"status":"stopped"'*) exit 0 ;;
    esac
    sleep 1
done
echo "$CAIRN_NODE is still running" >&2
exit 1
