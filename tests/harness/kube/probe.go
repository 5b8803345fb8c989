package kube

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Ready has the pod ready while the probe succeeds, which is asked each second.
func Ready(p corev1.ProbeHandler) Option {
	return Box(func(c *corev1.Container) { c.ReadinessProbe = eachSecond(p, 1) })
}

// Live restarts the container when the probe fails, which is asked each second.
func Live(p corev1.ProbeHandler) Option {
	return Box(func(c *corev1.Container) { c.LivenessProbe = eachSecond(p, 1) })
}

// Started holds the other probes back until this one succeeds, for a minute.
func Started(p corev1.ProbeHandler) Option {
	return Box(func(c *corev1.Container) { c.StartupProbe = eachSecond(p, 60) })
}

func eachSecond(p corev1.ProbeHandler, failures int32) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: p, PeriodSeconds: 1, FailureThreshold: failures}
}

// HTTP succeeds when a page is answered.
func HTTP(path string, port int32) corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(port)}}
}

// TCP succeeds when a port is open.
func TCP(port int32) corev1.ProbeHandler {
	return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}
}

// Exec succeeds when a command in the container does.
func Exec(command ...string) corev1.ProbeHandler {
	return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: command}}
}

// GRPC succeeds when a service says by gRPC's health protocol that it is well;
// no name asks for the server as a whole.
func GRPC(port int32, service string) corev1.ProbeHandler {
	return corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port, Service: &service}}
}

func decimal(n int32) string { return strconv.Itoa(int(n)) }
