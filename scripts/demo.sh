#!/usr/bin/env bash
# What `make run` shows on a throwaway cluster that has the image knarr.dev/test:1:
# a Deployment, a Service, and a client that finds it by name. With --once it ends
# when the client was answered; else the cluster stays until Ctrl-C.
set -euo pipefail

begun=$(date +%s%N)
say() {
	local ms=$((($(date +%s%N) - begun) / 1000000))
	printf '%4d.%03d s  %s\n' $((ms / 1000)) $((ms % 1000)) "$*"
}

say "the cluster is ready: node, network and DNS; no image was pulled"
kubectl create --validate=false -f - >/dev/null <<'YAML'
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 2
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: hello, image: "knarr.dev/test:1", command: [testbox, serve, --port, "8080", --hostname]}
---
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: client, image: "knarr.dev/test:1", command: [testbox, get, --retry, 60s, "http://hello"]}
YAML
say "created Deployment hello (2 replicas), Service hello, and a client"
kubectl rollout status deployment/hello --timeout=2m >/dev/null
say "both pods of the Deployment run"
kubectl wait pod/client --for=jsonpath='{.status.phase}'=Succeeded --timeout=2m >/dev/null
say "the client asked http://hello and was answered by $(kubectl logs client)"
if [[ ${1-} == --once ]]; then
	exit 0
fi
say "use it from another terminal, until you press Ctrl-C here:"
printf '\n    KUBECONFIG=%s kubectl get pods -o wide\n\n' "$KUBECONFIG"
trap 'exit 0' INT TERM
while :; do
	sleep 3600 &
	wait $!
done
