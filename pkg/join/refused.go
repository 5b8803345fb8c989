package join

import (
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CauseRefused is in the details of the Status that servers answer one with who
// is no member of the cluster although its certificate is valid.
const CauseRefused metav1.CauseType = "KnarrNodeRefused"

// IsRefused tells whether a server has refused a node since it is no member of
// the cluster: only a token helps then.
func IsRefused(err error) bool { return apierrors.HasStatusCause(err, CauseRefused) }
