package config

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

func (k *checker) backup() {
	b := k.c.Backup
	if b.Schedule != "" {
		if _, err := cron.ParseStandard(b.Schedule); err != nil {
			k.add(at("backup-schedule"), strconv.Quote(b.Schedule), "is not a time table: "+err.Error(), "give five fields as cron has them, or such as \"@every 6h\"")
		}
	}
	if b.Retention < 1 {
		k.add(at("backup-retention"), strconv.Itoa(b.Retention), "would leave no backup", "give 1 or more")
	}
	if b.PassphraseFile != "" && b.RecipientsFile != "" {
		k.add(at("backup-passphrase-file", "backup-recipients-file"), "backup-passphrase-file", "cannot be used beside backup-recipients-file", "leave one of them out")
	}
	if to := b.ReplicateTo; to != "" {
		bucket, s3 := strings.CutPrefix(to, "s3://")
		switch {
		case s3 && strings.Trim(bucket, "/") == "", !s3 && !filepath.IsAbs(to):
			k.add(at("replicate-to"), strconv.Quote(to), "is neither an absolute path nor s3://bucket/folder", "give one of them")
		case b.PassphraseFile != "":
			k.add(at("backup-passphrase-file", "replicate-to"), "backup-passphrase-file", "cannot be used beside replicate-to: the passphrase would have to be worked on each second", "give backup-recipients-file in its place")
		}
	}
	if d, err := time.ParseDuration(b.S3.Timeout); err != nil || d <= 0 {
		k.add(at("backup-s3-timeout"), strconv.Quote(b.S3.Timeout), "is not a duration", "give one such as 5m")
	}
	if !b.S3.Enabled {
		return
	}
	if b.S3.Bucket == "" {
		k.add(at("backup-s3-bucket", "backup-s3"), "backup-s3", "is set without a bucket", "give backup-s3-bucket")
	}
	if strings.Contains(b.S3.Endpoint, "/") {
		k.add(at("backup-s3-endpoint"), strconv.Quote(b.S3.Endpoint), "is not host:port", "leave out the scheme and the path; backup-s3-insecure uses HTTP")
	}
}
