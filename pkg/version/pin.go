//go:build pin

// This file is never compiled. It imports one package of every Kubernetes
// staging module, so that `go mod tidy` keeps all of them in go.mod at the
// version we chose: k8s.io/kubernetes itself asks for them at v0.0.0.

package version

import (
	_ "k8s.io/api/core/v1"
	_ "k8s.io/apiextensions-apiserver/pkg/apihelpers"
	_ "k8s.io/apimachinery/pkg/version"
	_ "k8s.io/apiserver/pkg/server"
	_ "k8s.io/cli-runtime/pkg/printers"
	_ "k8s.io/client-go/rest"
	_ "k8s.io/cloud-provider"
	_ "k8s.io/cluster-bootstrap/token/api"
	_ "k8s.io/code-generator"
	_ "k8s.io/component-base/version"
	_ "k8s.io/component-helpers/node/util"
	_ "k8s.io/controller-manager/app"
	_ "k8s.io/cri-api/pkg/apis"
	_ "k8s.io/cri-client/pkg"
	_ "k8s.io/cri-streaming/pkg/streaming"
	_ "k8s.io/csi-translation-lib"
	_ "k8s.io/dynamic-resource-allocation/api"
	_ "k8s.io/endpointslice"
	_ "k8s.io/externaljwt/apis/v1"
	_ "k8s.io/kms/apis/v2"
	_ "k8s.io/kube-aggregator/pkg/apiserver"
	_ "k8s.io/kube-controller-manager/config/v1alpha1"
	_ "k8s.io/kube-proxy/config/v1alpha1"
	_ "k8s.io/kube-scheduler/config/v1"
	_ "k8s.io/kubectl/pkg/cmd"
	_ "k8s.io/kubelet/config/v1beta1"
	_ "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	_ "k8s.io/mount-utils"
	_ "k8s.io/pod-security-admission/api"
	_ "k8s.io/sample-apiserver/pkg/apis/wardle/v1alpha1"
	_ "k8s.io/sample-cli-plugin/pkg/cmd"
	_ "k8s.io/sample-controller/pkg/apis/samplecontroller/v1alpha1"
	_ "k8s.io/streaming/pkg/httpstream"
)
