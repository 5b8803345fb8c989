package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestConfigMapsAndSecretsArriveAsVariablesAndFiles(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
data:
  COLOUR: green
  SIZE: large
  app.conf: |
    verbose = yes
---
apiVersion: v1
kind: Secret
metadata:
  name: credentials
stringData:
  user: admin
  password: "s3cret"
---
apiVersion: v1
kind: Pod
metadata:
  name: reader
spec:
  containers:
  - name: reader
    image: knarr.dev/test:1
    env:
    - name: PASSWORD
      valueFrom:
        secretKeyRef: {name: credentials, key: password}
    - name: GREETING
      value: I am $(COLOUR), $(PASSWORD)
    - name: ABSENT
      valueFrom:
        configMapKeyRef: {name: nothing, key: nothing, optional: true}
    envFrom:
    - configMapRef: {name: settings}
    - secretRef: {name: credentials}
      prefix: LOGIN_
    volumeMounts:
    - {name: settings, mountPath: /etc/settings}
    - {name: settings, mountPath: /etc/single.conf, subPath: app.conf}
    - {name: credentials, mountPath: /etc/credentials}
    - {name: all, mountPath: /etc/all}
  volumes:
  - name: settings
    configMap: {name: settings}
  - name: credentials
    secret:
      secretName: credentials
      defaultMode: 0400
  - name: all
    projected:
      sources:
      - configMap:
          name: settings
          items:
          - {key: COLOUR, path: look/colour}
      - secret: {name: credentials}
`)
	s.running("reader")
	got := s.in("reader", "sh", "-c", `
echo $COLOUR $SIZE $PASSWORD "$GREETING" [$ABSENT] $LOGIN_user
cat /etc/settings/app.conf /etc/single.conf
cat /etc/credentials/password; echo
stat -L -c %a /etc/credentials/password
cat /etc/all/look/colour /etc/all/user; echo
grep -c tmpfs.*/etc/credentials /proc/mounts
`)
	want(t, "what the pod sees", got, strings.Join([]string{
		"green large s3cret I am green, s3cret [] admin",
		"verbose = yes", "verbose = yes", "s3cret", "400", "greenadmin", "1",
	}, "\n"))
}

func TestUpdatedConfigMapReachesTheFilesOfARunningPod(t *testing.T) {
	s := newSpace(t)
	s.create(kube.ConfigMap("settings", "colour", "green"), kube.Secret("key", "key", "old"),
		kube.Pod("reader", kube.Mount("settings", "/etc/settings", kube.Settings("settings")), kube.Mount("key", "/etc/key", kube.Secrets("key"))))
	s.running("reader")
	want(t, "the files", s.in("reader", "sh", "-c", "cat /etc/settings/colour /etc/key/key"), "greenold")
	s.kubectl("patch", "configmap", "settings", "--patch", `{"data": {"colour": "blue"}}`)
	s.kubectl("patch", "secret", "key", "--patch", `{"stringData": {"key": "new"}}`)
	// The kubelet looks at a pod's volumes about once a minute, or when the pod
	// changes.
	s.kubectl("annotate", "pod", "reader", "look=now")
	s.WaitFor(t, "the files to be those of the update", func(context.Context) (bool, error) {
		out, err := s.inErr("reader", "sh", "-c", "cat /etc/settings/colour /etc/key/key")
		return out == "bluenew", err
	})
}

func TestPodWaitsForItsConfigMap(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("eager", kube.Once, kube.Run("cat", "/etc/settings/colour"), kube.Mount("settings", "/etc/settings", kube.Settings("settings"))))
	s.event("eager", "FailedMount", `configmap "settings" not found`)
	s.kubectl("create", "configmap", "settings", "--from-literal=colour=late")
	want(t, "the output", s.ended("eager", corev1.PodSucceeded), "late")
}

func TestDownwardAPITellsAPodAboutItself(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: self
  labels: {tier: front}
  annotations: {note: by hand}
spec:
  serviceAccountName: default
  containers:
  - name: self
    image: knarr.dev/test:1
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {cpu: "1", memory: 64Mi}
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: NODE_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    volumeMounts:
    - {name: about, mountPath: /about}
  volumes:
  - name: about
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: annotations, fieldRef: {fieldPath: metadata.annotations}}
      - {path: cpu, resourceFieldRef: {containerName: self, resource: requests.cpu, divisor: 1m}}
`)
	pod := s.running("self")
	want(t, "the variables", s.in("self", "sh", "-c", "echo $NAME $NS $IP $NODE $NODE_IP $ACCOUNT $TIER $MEMORY"),
		strings.Join([]string{"self", s.ns, pod.Status.PodIP, pod.Spec.NodeName, s.Host.Addr().String(), "default", "front", "64"}, " "))
	want(t, "the file of labels", s.in("self", "cat", "/about/labels"), `tier="front"`)
	wantPart(t, "the file of annotations", s.in("self", "cat", "/about/annotations"), `note="by hand"`)
	want(t, "the file of a request", s.in("self", "cat", "/about/cpu"), "10")

	s.kubectl("label", "pod", "self", "tier=back", "--overwrite")
	s.WaitFor(t, "the file to follow the label", func(context.Context) (bool, error) {
		out, err := s.inErr("self", "cat", "/about/labels")
		return out == `tier="back"`, err
	})
}

func TestServiceVariablesTellAPodAboutServices(t *testing.T) {
	s := newSpace(t)
	s.create(web("any")...)
	s.client()
	out := s.in("client", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT $WEB_SERVICE_HOST:$WEB_SERVICE_PORT_HTTP")
	want(t, "the variables", out, s.Kubectl(t, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")+":443 "+s.get("service/web", ".spec.clusterIP")+":80")
}
