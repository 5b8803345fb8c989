package controlplane

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// auditPolicy records the metadata of requests: who, what, when, from where and
// with which result. Left out is what happens all the time and tells nothing:
// renewals of leases, and the reads of the system's own parts. Contents of Secrets
// and of answers are never recorded.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/version", "/openapi/*"]
- level: None
  resources: [{group: coordination.k8s.io, resources: [leases]}, {group: "", resources: [events]}, {group: events.k8s.io, resources: [events]}]
- level: None
  verbs: [get, list, watch]
  userGroups: [system:nodes]
- level: None
  verbs: [get, list, watch]
  users: [system:apiserver, system:kube-controller-manager, system:kube-scheduler, system:kube-proxy, system:knarr-controller, system:knarr-dns]
- level: None
  verbs: [get, list, watch]
  userGroups: ["system:serviceaccounts:kube-system"]
- level: Metadata
`

// admission has pods of every namespace but kube-system restricted unless their
// namespace says otherwise by its labels, and bounds how many events are taken.
const admission = `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: restricted, enforce-version: latest, audit: restricted, audit-version: latest, warn: restricted, warn-version: latest}
    exemptions: {namespaces: [kube-system]}
- name: EventRateLimit
  configuration:
    apiVersion: eventratelimit.admission.k8s.io/v1alpha1
    kind: Configuration
    limits: [{type: Server, qps: 5000, burst: 20000}]
`

// writeProfile writes the files that the profiles' flags name.
func (a *APIServer) writeProfile() error {
	c := a.cfg.Config
	if c.Audited() {
		// Who did what is nobody else's to read.
		if err := os.MkdirAll(filepath.Dir(c.AuditLog()), 0o700); err != nil {
			return fmt.Errorf("make the folder of the audit log: %w", err)
		}
		if err := writeFile(c.AuditPolicy(), auditPolicy); err != nil {
			return err
		}
	}
	if c.HasProfile(config.ProfileCIS) {
		return writeFile(c.AdmissionFile(), admission)
	}
	return nil
}

func writeFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write settings of the API server: %w", err)
	}
	return pki.WriteSecret(path, []byte(text))
}
