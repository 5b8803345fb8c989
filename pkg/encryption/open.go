package encryption

import (
	"bytes"
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
)

// Opener decrypts Secrets as the store has them.
type Opener struct {
	path string
	with value.Transformer
	err  error
}

// NewOpener takes the keys of a configuration of ours. It has to come before the
// store is read: a key may be forgotten meanwhile. A configuration that is missing
// or another's is told only when there is something to decrypt.
func NewOpener(ctx context.Context, path string) *Opener {
	o := &Opener{path: path}
	if _, o.err = Load(path); o.err != nil {
		return o
	}
	c, err := encryptionconfig.LoadEncryptionConfig(ctx, path, false, "")
	if err != nil {
		o.err = fmt.Errorf("read encryption configuration %s: %w", path, err)
		return o
	}
	o.with = c.Transformers[schema.GroupResource{Resource: "secrets"}]
	return o
}

// Open returns a stored value as it was before it was encrypted, and one that is
// not as it is. key is the store's.
func (o *Opener) Open(ctx context.Context, key string, stored []byte) ([]byte, error) {
	if !bytes.HasPrefix(stored, []byte(encrypted)) {
		return stored, nil
	}
	if o.err != nil {
		return nil, fmt.Errorf("it is encrypted: %w", o.err)
	}
	plain, _, err := o.with.TransformFromStorage(ctx, stored, value.DefaultContext(key))
	if err != nil {
		return nil, fmt.Errorf("decrypt by the keys of %s: %w", o.path, err)
	}
	return plain, nil
}
