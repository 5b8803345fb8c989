// Package support gathers what somebody needs who is to find out what is wrong
// with a machine, and no secret: a support bundle.
package support

import (
	"encoding/base64"
	"regexp"
	"slices"
	"strings"
)

// Hidden stands where a secret was.
const Hidden = "[removed]"

// shortest is how long a known secret must be to be looked for: a shorter one
// would be found in words.
const shortest = 6

// Scrubber takes secrets out of texts: those that it knows, in clear and in base64,
// and what looks like one.
type Scrubber struct {
	known *strings.Replacer
}

// NewScrubber returns one that knows these secrets. Lines of a secret that has
// several, such as a key, are secrets too.
func NewScrubber(secrets ...string) *Scrubber {
	var all []string
	for _, s := range secrets {
		for _, part := range append(strings.Split(s, "\n"), s) {
			part = strings.TrimSpace(part)
			if len(part) < shortest || strings.HasPrefix(part, "-----") {
				continue
			}
			all = append(all, part, base64.StdEncoding.EncodeToString([]byte(part)))
		}
	}
	// Of two that begin alike, the longer one first.
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, s := range slices.Compact(all) {
		pairs = append(pairs, s, Hidden)
	}
	return &Scrubber{known: strings.NewReplacer(pairs...)}
}

// What looks like a secret, and what is left of it.
var (
	keyBlock = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)`)
	// knarr.<hash>.<id>.<secret>, K10<hash>::…, <id>.<secret>
	joinToken = regexp.MustCompile(`\b(knarr\.[0-9a-f]{64}\.)?([a-z0-9]{6})\.[a-z0-9]{16}\b`)
	webToken  = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?`)
	bearer    = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9+/_=.~-]{8,}`)
	inURL     = regexp.MustCompile(`([a-z][a-z0-9+.-]*://[^/\s:@"']*):[^/\s@"']+@`)
	// password: x, "token": "x", --secret-key=x, KNARR_TOKEN=x
	named = regexp.MustCompile(`(?i)((?:passw(?:or)?d|passphrase|secret|token|apikey|api[-_]key|access[-_]key|private[-_]key|client[-_]key[-_]data|credential|auth)["']?[ \t]*[:=][ \t]*)("[^"\n]*"|'[^'\n]*'|[^\s,;}"'\n]+)`)
	// A key by which nothing is given away: a path of a file.
	isPath = regexp.MustCompile(`^["']?(/|true\b|false\b|\{|\[|null\b|\|)`)
)

// Scrub returns the text with no secret in it.
func (s *Scrubber) Scrub(text string) string {
	text = s.known.Replace(text)
	text = keyBlock.ReplaceAllString(text, Hidden)
	text = joinToken.ReplaceAllString(text, "$2."+Hidden)
	text = webToken.ReplaceAllString(text, Hidden)
	text = bearer.ReplaceAllString(text, "$1 "+Hidden)
	text = inURL.ReplaceAllString(text, "$1:"+Hidden+"@")
	return named.ReplaceAllStringFunc(text, func(found string) string {
		m := named.FindStringSubmatch(found)
		if isPath.MatchString(m[2]) {
			return found
		}
		return m[1] + Hidden
	})
}
