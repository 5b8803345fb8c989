// Knarr-sbom writes what executables are made of, as SPDX 2.3 in JSON: the
// modules that Go itself noted in each of them.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/knarr-dev/knarr/pkg/bundle"
)

func main() {
	version := flag.String("version", "", "version of the release")
	created := flag.String("created", "", "time of the release, RFC 3339")
	archive := flag.String("bundle", "", "bundle whose programs are listed too")
	out := flag.String("o", "", "file to write")
	flag.Parse()
	if err := run(*version, *created, *archive, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "knarr-sbom:", err)
		os.Exit(1)
	}
}

func run(version, created, archive, out string, files []string) error {
	at, err := time.Parse(time.RFC3339, created)
	if err != nil {
		return fmt.Errorf("-created: %w", err)
	}
	if archive != "" {
		dir, err := os.MkdirTemp("", "knarr-sbom-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		bundled, err := unpack(archive, dir)
		if err != nil {
			return fmt.Errorf("unpack bundle: %w", err)
		}
		files = append(files, bundled...)
	}
	d, err := describe(version, at, files)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(text, '\n'), 0o644)
}

// unpack lays the bundle's programs down, and returns those made by Go.
func unpack(archive, dir string) ([]string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	a, err := bundle.Open(data)
	if err != nil {
		return nil, err
	}
	u, err := a.Unpack(dir)
	if err == nil {
		err = u.Settle()
	}
	if err != nil {
		return nil, err
	}
	var all []string
	for _, d := range []string{u.BinDir, u.CNIDir} {
		entries, err := os.ReadDir(d)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			path := filepath.Join(d, e.Name())
			if _, err := buildinfo.ReadFile(path); err == nil {
				all = append(all, path)
			}
		}
	}
	return all, nil
}

// The parts of SPDX 2.3 that are used: https://spdx.github.io/spdx-spec/v2.3.
type document struct {
	SPDXVersion       string         `json:"spdxVersion"`
	DataLicense       string         `json:"dataLicense"`
	SPDXID            string         `json:"SPDXID"`
	Name              string         `json:"name"`
	DocumentNamespace string         `json:"documentNamespace"`
	CreationInfo      creationInfo   `json:"creationInfo"`
	Packages          []spdxPackage  `json:"packages"`
	Relationships     []relationship `json:"relationships"`
}

type creationInfo struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	SPDXID           string        `json:"SPDXID"`
	Name             string        `json:"name"`
	VersionInfo      string        `json:"versionInfo"`
	DownloadLocation string        `json:"downloadLocation"`
	FilesAnalyzed    bool          `json:"filesAnalyzed"`
	LicenseConcluded string        `json:"licenseConcluded"`
	LicenseDeclared  string        `json:"licenseDeclared"`
	CopyrightText    string        `json:"copyrightText"`
	Purpose          string        `json:"primaryPackagePurpose,omitempty"`
	Checksums        []checksum    `json:"checksums,omitempty"`
	ExternalRefs     []externalRef `json:"externalRefs,omitempty"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type externalRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	Element string `json:"spdxElementId"`
	Type    string `json:"relationshipType"`
	Related string `json:"relatedSpdxElement"`
}

const none = "NOASSERTION"

func newPackage(id, name, version string) spdxPackage {
	return spdxPackage{
		SPDXID: id, Name: name, VersionInfo: version, DownloadLocation: none,
		LicenseConcluded: none, LicenseDeclared: none, CopyrightText: none,
	}
}

// describe makes the document. The same files give the same bytes.
func describe(version string, created time.Time, files []string) (*document, error) {
	d := &document{
		SPDXVersion: "SPDX-2.3", DataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", Name: "knarr-" + version,
		CreationInfo: creationInfo{created.UTC().Format(time.RFC3339), []string{"Tool: knarr-sbom"}},
	}
	modules := map[string]spdxPackage{}
	all := sha256.New()
	for _, path := range files {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read what %s is made of: %w", path, err)
		}
		sum, err := hashOf(path)
		if err != nil {
			return nil, err
		}
		fmt.Fprintln(all, sum, filepath.Base(path))
		p := newPackage("SPDXRef-File-"+idOf(filepath.Base(path)), filepath.Base(path), version)
		if info.Main.Version != "" && info.Main.Version != "(devel)" {
			p.VersionInfo = info.Main.Version
		}
		p.Purpose, p.Checksums = "APPLICATION", []checksum{{"SHA256", sum}}
		d.Packages = append(d.Packages, p)
		d.Relationships = append(d.Relationships, relationship{d.SPDXID, "DESCRIBES", p.SPDXID})
		for _, m := range parts(info) {
			id := "SPDXRef-Module-" + idOf(m.Path+"-"+m.Version)
			one := newPackage(id, m.Path, m.Version)
			one.Purpose = "LIBRARY"
			one.ExternalRefs = []externalRef{{"PACKAGE-MANAGER", "purl", purl(m)}}
			modules[id] = one
			d.Relationships = append(d.Relationships, relationship{p.SPDXID, "DEPENDS_ON", id})
		}
	}
	if len(files) == 0 {
		return nil, errors.New("no executable was named")
	}
	for _, id := range slices.Sorted(maps.Keys(modules)) {
		d.Packages = append(d.Packages, modules[id])
	}
	d.DocumentNamespace = "https://spdx.org/spdxdocs/knarr-" + version + "-" + hex.EncodeToString(all.Sum(nil))
	return d, nil
}

// parts are the modules of an executable, and the standard library.
func parts(info *debug.BuildInfo) []debug.Module {
	all := []debug.Module{{Path: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, *m)
	}
	return all
}

func purl(m debug.Module) string {
	return "pkg:golang/" + strings.ToLower(m.Path) + "@" + strings.ReplaceAll(m.Version, "+", "%2B")
}

// idOf writes a name in the letters that SPDX allows.
func idOf(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, name)
}

func hashOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
