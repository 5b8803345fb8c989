#!/bin/sh
# Imports the images and ends containerd again.
set -eu
export PATH="/opt/peer/bin:/opt/peer/bundle/bin:$PATH"

containerd &
containerd=$!
trap 'kill $containerd; wait $containerd' EXIT
until ctr version >/dev/null 2>&1; do
	kill -0 $containerd
	sleep 0.1
done
ctr --namespace k8s.io images import /opt/peer/bundle/images/pause.tar
ctr --namespace k8s.io images import /tmp/test.tar
rm /tmp/test.tar
