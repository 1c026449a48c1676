#!/usr/bin/env bash
# A real S3 server for tests: one Ceph monitor, one OSD on a sparse file and the object gateway, on loopback only.
#   rgw.sh start DIR PORT    state under DIR, gateway at http://127.0.0.1:PORT, monitor at PORT + 1000
#   rgw.sh stop DIR
# Needs Debian's radosgw, ceph-mon, ceph-osd and ceph-common. Access key `test`, secret key `testsecret12`.
set -euo pipefail
verb=$1
dir=$2
conf=$dir/ceph.conf

write_conf() {
    mkdir -p "$dir"/{mon,osd,run,log,rgw}
    cat >"$conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon_host = [v2:127.0.0.1:$2]
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = true
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_warn = 1
mon_data_avail_crit = 1
# short intervals: a test waits for every one of them at the start
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
osd_mon_report_interval = 1
run_dir = $dir/run
admin_socket = $dir/run/\$name.asok
log_file = $dir/log/\$name.log
pid_file = $dir/run/\$name.pid
mon_data = $dir/mon
osd_data = $dir/osd
osd_objectstore = bluestore
bluestore_block_size = 4294967296
bluestore_block_wal_size = 0
bluestore_block_db_size = 0
osd_memory_target = 939524096
keyring = /dev/null
[client.rgw]
ms_mon_client_mode = crc
rgw_frontends = beast endpoint=127.0.0.1:$1 tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_enable_usage_log = false
rgw_data = $dir/rgw
CONF
}

start() {
    local port=$1 monitor=$(($1 + 1000))
    write_conf "$port" "$monitor"
    monmaptool --create --fsid "$(awk '/fsid/{print $3}' "$conf")" --addv a "[v2:127.0.0.1:$monitor]" "$dir/monmap"
    ceph-mon -c "$conf" --mkfs -i a --monmap "$dir/monmap"
    ceph-mon -c "$conf" -i a --public-addr 127.0.0.1
    local uuid
    uuid=$(cat /proc/sys/kernel/random/uuid)
    ceph -c "$conf" osd new "$uuid"
    ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$uuid"
    ceph -c "$conf" osd crush add osd.0 1.0 root=default host="$(hostname -s)"
    ceph-osd -c "$conf" -i 0
    radosgw-admin -c "$conf" -n client.rgw user create --uid test --display-name test \
        --access-key test --secret-key testsecret12
    radosgw -c "$conf" -n client.rgw
    until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.05; done
}

stop() {
    for name in client.rgw osd.0 mon.a; do
        local file=$dir/run/$name.pid
        [ -e "$file" ] || continue
        # nothing in there is to be kept
        kill -9 "$(cat "$file")" 2>/dev/null || true
    done
}

case $verb in
start) start "$3" >"$dir.start.log" 2>&1 ;;
stop) stop ;;
*) echo "usage: rgw.sh start DIR PORT | stop DIR" >&2; exit 2 ;;
esac
