#!/bin/bash
# Starts all processes of the peer at once. SIGTERM ends them, those first that
# need the others; shims and pods stay. NODE and ADDRESS are the host's.
set -u
export PATH="/opt/peer/bin:/opt/peer/bundle/bin:$PATH"
conf=/etc/kubernetes
pki=$conf/pki
cri=/run/containerd/containerd.sock
rm -f $cri # one that nobody listens to any more

declare -A name
named() { name[$!]=$1; }

echo 1 >/proc/sys/net/ipv4/ip_forward

etcd --data-dir=/var/lib/etcd \
	--listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
	--listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
	--initial-cluster=default=http://127.0.0.1:2380 &
named etcd
back=$!

containerd &
named containerd
back="$back $!"

kube-apiserver --advertise-address="$ADDRESS" --secure-port=6443 \
	--etcd-servers=http://127.0.0.1:2379 \
	--allow-privileged=true --authorization-mode=Node,RBAC \
	--enable-admission-plugins=NodeRestriction --enable-bootstrap-token-auth=true \
	--client-ca-file=$pki/client-ca.crt \
	--tls-cert-file=$pki/apiserver.pem --tls-private-key-file=$pki/apiserver.pem \
	--kubelet-certificate-authority=$pki/server-ca.crt \
	--kubelet-client-certificate=$pki/apiserver-kubelet-client.pem \
	--kubelet-client-key=$pki/apiserver-kubelet-client.pem \
	--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname \
	--proxy-client-cert-file=$pki/front-proxy.pem --proxy-client-key-file=$pki/front-proxy.pem \
	--requestheader-allowed-names=system:auth-proxy \
	--requestheader-client-ca-file=$pki/request-header-ca.crt \
	--requestheader-extra-headers-prefix=X-Remote-Extra- \
	--requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User \
	--service-account-issuer=https://kubernetes.default.svc.cluster.local \
	--service-account-key-file=$pki/service-account.key \
	--service-account-signing-key-file=$pki/service-account.key \
	--service-cluster-ip-range=10.43.0.0/16 &
named kube-apiserver
front=$!

kube-controller-manager --bind-address=127.0.0.1 --leader-elect=true \
	--kubeconfig=$conf/controller-manager.conf \
	--authentication-kubeconfig=$conf/controller-manager.conf \
	--authorization-kubeconfig=$conf/controller-manager.conf \
	--client-ca-file=$pki/client-ca.crt \
	--requestheader-client-ca-file=$pki/request-header-ca.crt \
	--allocate-node-cidrs=true --cluster-cidr=10.42.0.0/16 --service-cluster-ip-range=10.43.0.0/16 \
	--cluster-signing-cert-file=$pki/client-ca.crt --cluster-signing-key-file=$pki/client-ca.key \
	--controllers='*,bootstrapsigner,tokencleaner' --use-service-account-credentials=true \
	--root-ca-file=$pki/server-ca.crt \
	--service-account-private-key-file=$pki/service-account.key &
named kube-controller-manager
front="$front $!"

kube-scheduler --bind-address=127.0.0.1 --leader-elect=true \
	--kubeconfig=$conf/scheduler.conf \
	--authentication-kubeconfig=$conf/scheduler.conf \
	--authorization-kubeconfig=$conf/scheduler.conf &
named kube-scheduler
front="$front $!"

# A kubelet that finds nobody at containerd's socket ends at once; systemd would
# start it again ten seconds later, or order it after containerd. This is the
# latter, which is kinder. The others wait for each other by themselves.
(
	until [ -S $cri ]; do sleep 0.01; done
	exec kubelet --config=$conf/kubelet.yaml --kubeconfig=$conf/kubelet.conf \
		--hostname-override="$NODE" --node-ip="$ADDRESS"
) &
named kubelet
front="$front $!"

kube-proxy --config=$conf/kube-proxy.yaml --hostname-override="$NODE" &
named kube-proxy
front="$front $!"

# The API server waits for whoever watches; after ten seconds nobody cares.
# shellcheck disable=SC2317 # called by the trap
end() {
	trap - TERM
	# shellcheck disable=SC2086 # one word for each process
	kill $front
	# shellcheck disable=SC2086
	(sleep 10; kill -9 $front) 2>/dev/null &
	watchdog=$!
	# shellcheck disable=SC2086
	wait $front
	kill "$watchdog"
	# shellcheck disable=SC2086
	kill $back
	wait
	exit 0
}
trap end TERM

# One that ends by itself spoils the run: end all instead of waiting in vain.
# The bench reads this line.
wait -n -p pid
status=$?
echo "peer: ${name[$pid]} (process $pid) ended by itself: exit status $status" >&2
# shellcheck disable=SC2086
kill -9 $front $back 2>/dev/null
exit 1
