package platform

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/kilnhq/kiln/machine/meta"
)

// The value of kiln.config for a volume, the label of the volume and the file.
const (
	isoWord  = "metal-iso"
	isoLabel = "metal-iso"
	isoFile  = "config.yaml"
)

// argument returns the source that kiln.config names.
func argument(env *Environment, text string) Source {
	s := Source{Name: ArgConfig, Patience: patienceNetwork}
	if text == isoWord {
		s.Patience = patienceAsked
		s.Configuration = func(context.Context) ([]byte, error) {
			return env.file(isoFile, MaxSize, isoLabel)
		}
		return s
	}
	s.Configuration = func(ctx context.Context) ([]byte, error) {
		u, err := expand(env, text)
		if err != nil {
			return nil, fmt.Errorf("kernel argument %s: %w", ArgConfig, err)
		}
		// Provisioning servers answer 404 until somebody has told them of the machine.
		a, err := do(ctx, env.Client, request{url: u, strict: true})
		if err != nil {
			return nil, err
		}
		return a.body, nil
	}
	return s
}

// expand puts values in place of ${…} in the path and the query of a URL.
func expand(env *Environment, text string) (string, error) {
	before, rest, found := strings.Cut(text, "${")
	var b strings.Builder
	b.WriteString(before)
	for found {
		name, after, ended := strings.Cut(rest, "}")
		if !ended {
			return "", errors.New("${ has no }")
		}
		// The host must not depend on what somebody on the network says.
		if !inPath(b.String()) {
			return "", fmt.Errorf("${%s} is before the path of the URL; want http:// or https://, a host, and variables behind it", name)
		}
		value, err := variable(env, name)
		if err != nil {
			return "", err
		}
		if strings.Contains(b.String(), "?") {
			b.WriteString(url.QueryEscape(value))
		} else {
			b.WriteString(escapePath(value))
		}
		before, rest, found = strings.Cut(after, "${")
		b.WriteString(before)
	}
	u, err := url.Parse(b.String())
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", fmt.Errorf("found %q; want an http or https URL, %s or none", strings.SplitN(text, "?", 2)[0], isoWord)
	}
	return u.String(), nil
}

// inPath says whether what begins a URL has reached the path or the query.
func inPath(s string) bool {
	_, rest, ok := strings.Cut(s, "://")
	return ok && strings.ContainsAny(rest, "/?")
}

// escapePath escapes a value so that it is one component of a path, and not "..".
func escapePath(s string) string {
	if strings.Trim(s, ".") == "" {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// variable returns the value of ${name}.
func variable(env *Environment, name string) (string, error) {
	switch name {
	case "uuid":
		v, ok, err := env.Meta(meta.UUIDOverride)
		if err != nil {
			return "", err
		}
		if ok && v != "" {
			return v, nil
		}
		s, err := env.system()
		if err != nil {
			return "", err
		}
		if s.UUID == "" {
			return "", fmt.Errorf("${uuid}: the firmware has no UUID; set the value %s of META", meta.UUIDOverride.Name())
		}
		return s.UUID, nil
	case "serial":
		s, err := env.system()
		if err != nil {
			return "", err
		}
		if s.Serial == "" {
			return "", errors.New("${serial}: the firmware has no serial number")
		}
		return s.Serial, nil
	case "code":
		v, ok, err := env.Meta(meta.DownloadURLCode)
		if err != nil {
			return "", err
		}
		if !ok || v == "" {
			return "", fmt.Errorf("${code}: META has no value %s", meta.DownloadURLCode.Name())
		}
		return v, nil
	case "mac":
		return known(name, env.MAC(), "there is no network card yet")
	case "hostname":
		return known(name, env.Hostname(), "the machine has no name yet")
	}
	return "", fmt.Errorf("${%s} is not known; want ${uuid}, ${serial}, ${mac}, ${hostname} or ${code}", name)
}

func known(name, value, otherwise string) (string, error) {
	if value == "" {
		return "", temporary("${%s}: %s", name, otherwise)
	}
	return value, nil
}
