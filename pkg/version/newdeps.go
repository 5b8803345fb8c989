//go:build modules

package version

import (
	_ "filippo.io/age"
	_ "github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/minio/minio-go/v7"
	_ "go.uber.org/goleak"
	_ "helm.sh/helm/v4/pkg/action"
	_ "helm.sh/helm/v4/pkg/cmd"
	_ "sigs.k8s.io/kustomize/api/krusty"
	_ "sigs.k8s.io/metrics-server/pkg/server"
	_ "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)
