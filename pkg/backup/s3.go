package backup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Config says which bucket keeps backups, and how it is reached. Its fields are
// the options --backup-s3-….
type S3Config struct {
	// Endpoint is host[:port]. Default s3.amazonaws.com.
	Endpoint string
	// EndpointCA is a file of authorities that vouch for the endpoint, PEM, in place
	// of the machine's.
	EndpointCA string
	// SkipSSLVerify accepts any certificate.
	SkipSSLVerify bool
	// Insecure uses HTTP.
	Insecure bool
	Bucket   string
	// Region defaults to us-east-1.
	Region string
	// Folder is what the names of objects begin with.
	Folder string
	// CredentialsFile has the form of AWS' ~/.aws/credentials. Default: the variables
	// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, then the role
	// of the machine.
	CredentialsFile string
	// Timeout bounds a request for a whole backup. Default 5 minutes.
	Timeout time.Duration
}

// s3 keeps backups as objects of a bucket.
type s3 struct {
	cfg    S3Config
	client *minio.Client
}

var _ Storage = (*s3)(nil)

// NewS3 returns the storage. Nothing is asked of the endpoint yet.
func NewS3(cfg S3Config) (Storage, error) {
	if cfg.Bucket == "" {
		return nil, errors.New("keep backups by S3: no bucket given (--backup-s3-bucket)")
	}
	if cfg.Endpoint == "" {
		cfg.Endpoint = "s3.amazonaws.com"
	}
	if cfg.Region == "" {
		cfg.Region = "us-east-1"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Minute
	}
	transport, err := minio.DefaultTransport(!cfg.Insecure)
	if err != nil {
		return nil, fmt.Errorf("keep backups by S3: %w", err)
	}
	if err := trust(transport, cfg); err != nil {
		return nil, err
	}
	creds := credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.IAM{Client: &http.Client{Transport: transport}}})
	if cfg.CredentialsFile != "" {
		creds = credentials.NewFileAWSCredentials(cfg.CredentialsFile, "")
		if _, err := creds.GetWithContext(nil); err != nil {
			return nil, fmt.Errorf("read credentials of S3 from %s (--backup-s3-credentials-file): %w: it has to be of the form of ~/.aws/credentials", cfg.CredentialsFile, err)
		}
	}
	client, err := minio.New(cfg.Endpoint, &minio.Options{
		Creds: creds, Secure: !cfg.Insecure, Region: cfg.Region, Transport: transport, MaxRetries: 3,
	})
	if err != nil {
		return nil, fmt.Errorf("keep backups at %s (--backup-s3-endpoint): %w", cfg.Endpoint, err)
	}
	return &s3{cfg: cfg, client: client}, nil
}

func trust(t *http.Transport, cfg S3Config) error {
	if cfg.Insecure {
		return nil
	}
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.TLSClientConfig.InsecureSkipVerify = cfg.SkipSSLVerify
	if cfg.EndpointCA == "" {
		return nil
	}
	text, err := os.ReadFile(cfg.EndpointCA)
	if err != nil {
		return fmt.Errorf("read authorities of S3 (--backup-s3-endpoint-ca): %w", err)
	}
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
		return fmt.Errorf("read authorities of S3 from %s (--backup-s3-endpoint-ca): there is no certificate in it", cfg.EndpointCA)
	}
	return nil
}

func (s *s3) String() string {
	return "s3://" + path.Join(s.cfg.Bucket, s.cfg.Folder) + " at " + s.cfg.Endpoint
}

func (s *s3) key(name string) string { return path.Join(s.cfg.Folder, name) }

// largestPut is S3's own limit for one request, in bytes.
const largestPut = 5 << 30

// Put implements Storage. The file is sent as it is read, so that memory does not
// grow with it.
func (s *s3) Put(ctx context.Context, name string, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("store backup: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	_, err = s.client.PutObject(ctx, s.cfg.Bucket, s.key(name), file, info.Size(), minio.PutObjectOptions{
		ContentType: "application/octet-stream", DisableMultipart: info.Size() < largestPut, NumThreads: 1,
	})
	return s.explain("store backup", err)
}

// Open implements Storage.
func (s *s3) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	o, err := s.client.GetObject(ctx, s.cfg.Bucket, s.key(name), minio.GetObjectOptions{})
	if err == nil {
		_, err = o.Stat() // asks
	}
	if err != nil {
		cancel()
		return nil, s.explain("read backup "+name, err)
	}
	return &object{o, cancel}, nil
}

type object struct {
	*minio.Object
	cancel context.CancelFunc
}

func (o *object) Close() error {
	defer o.cancel()
	return o.Object.Close()
}

// List implements Storage.
func (s *s3) List(ctx context.Context) ([]Object, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	prefix := s.cfg.Folder
	if prefix != "" {
		prefix = path.Clean(prefix) + "/"
	}
	var all []Object
	for o := range s.client.ListObjects(ctx, s.cfg.Bucket, minio.ListObjectsOptions{Prefix: prefix}) {
		if o.Err != nil {
			return nil, s.explain("list backups", o.Err)
		}
		if name := path.Base(o.Key); o.Key == s.key(name) {
			all = append(all, Object{name, o.Size})
		}
	}
	return all, nil
}

// Delete implements Storage.
func (s *s3) Delete(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	return s.explain("delete backup", s.client.RemoveObject(ctx, s.cfg.Bucket, s.key(name), minio.RemoveObjectOptions{}))
}

// explain says where an error came from, and what can be done about it.
func (s *s3) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	advice := ""
	switch minio.ToErrorResponse(err).Code {
	case minio.NoSuchBucket:
		advice = ": make the bucket, or give another --backup-s3-bucket"
	case minio.NoSuchKey:
		advice = ": \"knarr backup list\" shows those that there are"
	case minio.AccessDenied, "InvalidAccessKeyId", "SignatureDoesNotMatch":
		advice = ": look at the credentials (--backup-s3-credentials-file) and at what they may do"
	}
	return fmt.Errorf("%s in %s: %w%s", doing, s, err, advice)
}
