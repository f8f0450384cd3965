#!/bin/sh
# Install what the Slurm lab needs from Debian/Ubuntu packages. Starts nothing.
# Usage: install.sh [--no-dbd]      (--no-dbd: leave out slurmdbd and MariaDB)
set -eu
[ "$(id -u)" = 0 ] || { echo "install.sh: must run as root" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "install.sh: apt-get not found (Debian/Ubuntu only)" >&2; exit 1; }

pkgs="munge slurmctld slurmd slurm-client util-linux procps"
[ "${1:-}" = --no-dbd ] || pkgs="$pkgs slurmdbd slurm-wlm-mysql-plugin mariadb-server"

missing=
for p in $pkgs; do
    dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
[ -n "$missing" ] || { echo "install.sh: everything is installed already"; exit 0; }

# Packages must not start their own daemons: refuse service starts for the time of the install.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
apt-get -o DPkg::Lock::Timeout=120 install -y -q --no-install-recommends $missing >/dev/null ||
    { echo "install.sh: apt-get could not install:$missing (apt-get update first?)" >&2; exit 1; }
echo "install.sh: installed$missing ($(slurmctld -V))"
