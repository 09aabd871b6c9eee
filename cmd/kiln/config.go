package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/kilnhq/kiln/machine/config"
	"github.com/kilnhq/kiln/profiles"
)

const configUsage = "machine configuration that the node starts with: a file, an http or https URL, or - for standard input"

// How a machine configuration is asked for over the network.
const (
	configTries = 5
	configWait  = 2 * time.Second // more with every try
	configLimit = 1 << 20
)

// machineConfig reads a machine configuration.
func machineConfig(ctx context.Context, ref string) (profiles.Secret, error) {
	data, err := readConfig(ctx, ref)
	if err != nil {
		return "", fmt.Errorf("machine configuration: %w", err)
	}
	if len(data) == 0 && ref == "-" {
		return "", usageError{errors.New("machine configuration: nothing on standard input, which 'docker run' passes on with -i only")}
	}
	if len(data) == 0 {
		return "", usageError{fmt.Errorf("machine configuration %s is empty", ref)}
	}
	if len(data) > configLimit {
		return "", usageError{fmt.Errorf("machine configuration %s has more than %d bytes", ref, configLimit)}
	}
	return profiles.Secret(data), nil
}

// validConfig reads a machine configuration that goes into an image or onto a disk:
// its faults are told now, with their lines and columns, not when the machine starts.
func validConfig(ctx context.Context, ref string) (profiles.Secret, error) {
	data, err := machineConfig(ctx, ref)
	if err != nil {
		return "", err
	}
	if ref == "-" {
		ref = "standard input"
	} else if u, err := url.Parse(ref); err == nil && u.Host != "" {
		ref = u.Redacted()
	}
	if _, err := config.Parse(ref, []byte(data)); err != nil {
		return "", err
	}
	return data, nil
}

func readConfig(ctx context.Context, ref string) ([]byte, error) {
	switch {
	case ref == "-":
		return io.ReadAll(io.LimitReader(os.Stdin, configLimit+1))
	case strings.HasPrefix(ref, "http://"), strings.HasPrefix(ref, "https://"):
		return download(ctx, ref)
	}
	return readLimited(ref, configLimit)
}

// readLimited reads a file of at most limit bytes.
func readLimited(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, usageError{fmt.Errorf("%s has more than %d bytes", name, limit)}
	}
	return data, err
}

// download tries again what may well work the next time.
func download(ctx context.Context, ref string) ([]byte, error) {
	u, err := url.Parse(ref)
	if err != nil || u.Host == "" {
		return nil, usageError{fmt.Errorf("%q is no URL", ref)}
	}
	name := u.Redacted()
	for try := 1; ; try++ {
		data, again, err := get(ctx, ref)
		if err == nil {
			return data, nil
		}
		if !again || try == configTries {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Duration(try) * configWait):
		}
	}
}

// get asks once, and says whether to ask again if that fails.
func get(ctx context.Context, ref string) (data []byte, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ref, nil)
	if err != nil {
		return nil, false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		var e *url.Error // whose text has the whole URL, with its password
		if errors.As(err, &e) {
			err = e.Err
		}
		return nil, true, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode >= 500, fmt.Errorf("the server answers %s, want 200 OK", resp.Status)
	}
	data, err = io.ReadAll(io.LimitReader(resp.Body, configLimit+1))
	return data, true, err
}
