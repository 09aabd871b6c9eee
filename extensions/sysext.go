package extensions

import (
	"fmt"
	"path"
	"strings"

	"github.com/kilnhq/kiln/rootfs/tree"
)

// A systemd-sysext tree has no manifest: its root file system says what it is
// in a file in the format of os-release(5), whose name ends in the extension's.
const (
	releaseDir    = "usr/lib/extension-release.d"
	releasePrefix = "extension-release."
	maxRelease    = 64 << 10 // bytes
)

// sysextManifest makes the manifest of the systemd-sysext tree t.
func sysextManifest(t *tree.Tree) (Manifest, error) {
	files := t.Children(releaseDir)
	if len(files) != 1 {
		return Manifest{}, fmt.Errorf("%w: %s holds %d files (%s), want one extension-release.NAME", ErrFormat, releaseDir, len(files), strings.Join(files, ", "))
	}
	file := path.Join(releaseDir, files[0])
	name, ok := strings.CutPrefix(files[0], releasePrefix)
	if !ok {
		return Manifest{}, fmt.Errorf("%w: %s, want extension-release.NAME", ErrFormat, file)
	}
	data, err := readFile(t, file, maxRelease)
	if err != nil {
		return Manifest{}, err
	}
	fields, err := parseRelease(string(data))
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %s:%w", ErrFormat, file, err)
	}
	m := Manifest{Version: ManifestVersion, Metadata: Metadata{
		Name:        strings.ToLower(name),
		Version:     first(fields, "SYSEXT_VERSION_ID", "SYSEXT_IMAGE_VERSION", "IMAGE_VERSION"),
		Description: first(fields, "SYSEXT_PRETTY_NAME"),
	}}
	if m.Metadata.Version == "" {
		m.Metadata.Version = "0" // VERSION_ID is that of the system the extension is for
	}
	switch arch := fields["ARCHITECTURE"]; arch {
	case "", "_any":
	case "x86-64":
		m.Kernel.Arch = "amd64"
	case "arm64":
		m.Kernel.Arch = "arm64"
	default:
		return Manifest{}, fmt.Errorf("%w: %s: ARCHITECTURE=%q, want x86-64, arm64 or _any", ErrFormat, file, arch)
	}
	if err := m.Validate(); err != nil {
		return Manifest{}, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

func first(fields map[string]string, keys ...string) string {
	for _, k := range keys {
		if v := fields[k]; v != "" {
			return v
		}
	}
	return ""
}

// parseRelease parses os-release(5): lines KEY=VALUE, in which a value may be
// quoted as in a shell, and comments. Of a key that comes twice the last counts.
// Errors begin with the number of the line.
func parseRelease(data string) (map[string]string, error) {
	fields := map[string]string{}
	n := 0
	for line := range strings.SplitSeq(data, "\n") {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" || strings.ContainsFunc(key, func(r rune) bool {
			return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		}) {
			return nil, fmt.Errorf("%d: %q, want KEY=VALUE", n, clip(line))
		}
		v, err := unquote(value)
		if err != nil {
			return nil, fmt.Errorf("%d: %s: %w", n, key, err)
		}
		fields[key] = v
	}
	return fields, nil
}

// unquote takes the quotes of a shell away.
func unquote(s string) (string, error) {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c < ' ' && c != '\t' || c == 0x7f:
			return "", fmt.Errorf("a control character in %q", clip(s))
		case quote == 0 && (c == '"' || c == '\''), quote != 0 && c == quote:
			if quote == 0 {
				quote = c
			} else {
				quote = 0
			}
		case c == '\\' && quote != '\'':
			if i++; i == len(s) {
				return "", fmt.Errorf("%q ends in a backslash", clip(s))
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", fmt.Errorf("%q: a quote that does not end", clip(s))
	}
	return b.String(), nil
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
