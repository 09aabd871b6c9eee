package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/kernel/hardening"
	"github.com/kilnhq/kiln/kernel/kconfig"
	"github.com/kilnhq/kiln/machine/cmdline"
	"github.com/kilnhq/kiln/machine/sysctl"
	"github.com/kilnhq/kiln/profiles"
)

// kernelCheckFlags say which kernel to check.
type kernelCheckFlags struct {
	base, arch, profile, config, cmdline, output string
	kernelArgs                                   []string
	all, strict                                  bool
}

func newKernelCheck() *cobra.Command {
	var f kernelCheckFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Compare a kernel with the recommendations of the Kernel Self-Protection Project",
		Long: `Compare a kernel's configuration, the command line of its images and the
parameters that a node sets with what the Kernel Self-Protection Project
recommends (KSPP, Recommended Settings). What is not as recommended is listed;
docs/hardening.md says why. 'kiln node hardening' does the same on a running node.

A recommendation may be met in several ways: what the configuration makes the
default, the command line and the parameters override. It is not applicable to
other architectures and versions of Linux, or without something that the kernel
does not have.

With --base the command line is that of the images of a profile. With --config it
is not looked at unless --cmdline gives it, and parameters are not.

With --strict the exit code is 4 if a recommendation is not met.`,
		Example: `  kiln kernel check --base base
  kiln kernel check --base base --profile aws --kernel-arg init_on_free=1 --all
  kiln kernel check --config /boot/config-$(uname -r) --cmdline "$(cat /proc/cmdline)" --strict
  kiln kernel check -o json | jq -r '.results[] | select(.verdict == "fail") | .name'`,
		Args: args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"table", "json", "yaml"}, f.output) {
				return usageError{fmt.Errorf("--output %q, want table, json or yaml", f.output)}
			}
			for _, pair := range [][2]string{{"config", "base"}, {"config", "profile"}, {"cmdline", "profile"}} {
				if c.Flags().Changed(pair[0]) && c.Flags().Changed(pair[1]) {
					return usageError{fmt.Errorf("--%s and --%s, want one of them", pair[0], pair[1])}
				}
			}
			s, err := f.system(c)
			if err != nil {
				return err
			}
			r := hardening.Check(s)
			if err := f.print(c, r); err != nil {
				return err
			}
			if f.strict && r.Failed > 0 {
				return fmt.Errorf("%w: %d recommendations are not met", imager.ErrRefused, r.Failed)
			}
			return nil
		},
	}
	c.Flags().StringVar(&f.base, "base", "base", "base whose kernel is checked")
	c.Flags().StringVar(&f.arch, "arch", "", "architecture, if the base is for several: amd64 or arm64")
	c.Flags().StringVar(&f.profile, "profile", "metal", "profile whose images' command line is checked")
	c.Flags().StringArrayVar(&f.kernelArgs, "kernel-arg", nil, "kernel argument that the image will have as well (repeatable)")
	c.Flags().StringVar(&f.config, "config", "", "check the kernel of this configuration, as /boot/config-RELEASE or /proc/config.gz, instead of a base's")
	c.Flags().StringVar(&f.cmdline, "cmdline", "", "kernel command line to check instead of a profile's")
	c.Flags().BoolVar(&f.all, "all", false, "also list what is as recommended, and what does not apply")
	c.Flags().BoolVar(&f.strict, "strict", false, "fail if a recommendation is not met")
	c.Flags().StringVarP(&f.output, "output", "o", "table", "how to print: table, json or yaml")
	complete(c, "arch", func(*cobra.Command) []string { return []string{"amd64", "arm64"} })
	complete(c, "profile", func(*cobra.Command) []string { return profiles.Names() })
	complete(c, "output", func(*cobra.Command) []string { return []string{"table", "json", "yaml"} })
	return c
}

// maxKernelConfig bounds a kernel's configuration as it is stored, in bytes.
const maxKernelConfig = kconfig.MaxSize

// system reads what is to be checked.
func (f *kernelCheckFlags) system(c *cobra.Command) (hardening.System, error) {
	s := hardening.System{Arch: f.arch}
	if f.config != "" {
		fi, err := os.Stat(f.config)
		if err != nil {
			return s, err
		}
		if fi.Size() > maxKernelConfig {
			return s, fmt.Errorf("%s: %w: %d bytes, want at most %d", f.config, kconfig.ErrFormat, fi.Size(), maxKernelConfig)
		}
		data, err := os.ReadFile(f.config)
		if err != nil {
			return s, err
		}
		if s.Config, err = kconfig.Parse(data); err != nil {
			return s, fmt.Errorf("%s: %w", f.config, err)
		}
		s.Release = kconfig.Release(data)
		switch is := s.Config.Arch(); {
		case is == "":
			return s, fmt.Errorf("%s: %w for a known architecture: want amd64 or arm64", f.config, kconfig.ErrFormat)
		case f.arch != "" && f.arch != is:
			return s, fmt.Errorf("%s: %w for %s: it is for %s", f.config, kconfig.ErrFormat, f.arch, is)
		}
	} else if err := f.ofBase(&s); err != nil {
		return s, err
	}
	if c.Flags().Changed("cmdline") {
		s.Args = append([]string{}, cmdline.Parse(f.cmdline)...)
	}
	if s.Args != nil {
		s.Args = append(s.Args, f.kernelArgs...)
	} else if len(f.kernelArgs) > 0 {
		s.Args = f.kernelArgs
	}
	return s, nil
}

// ofBase takes the kernel of a base, with the command line of a profile and the
// parameters that nodes set.
func (f *kernelCheckFlags) ofBase(s *hardening.System) error {
	b, err := base.Open(f.base, f.arch)
	if err != nil {
		return err
	}
	part, err := b.Part(base.KernelConfig)
	if err != nil {
		return fmt.Errorf("base %s: %w; build the base of a kernel that comes with its configuration", f.base, err)
	}
	data, err := part.Bytes(maxKernelConfig)
	if err != nil {
		return err
	}
	if s.Config, err = kconfig.Parse(data); err != nil {
		return fmt.Errorf("base %s: %w", f.base, err)
	}
	p, err := loadProfile(f.profile, []string{"arch=" + b.Config.Arch})
	if err != nil {
		return err
	}
	s.Arch, s.Release, s.Args = b.Config.Arch, b.Config.Release, slices.Clone(p.Kernel.CommandLine())
	values := map[string]string{}
	for _, d := range sysctl.Defaults(s.Arch) {
		values[d.Name] = d.Value
	}
	s.Sysctl = func(name string) (string, bool) {
		if v, ok := values[name]; ok {
			return v, true
		}
		return "not set by the node", true
	}
	return nil
}

func (f *kernelCheckFlags) print(c *cobra.Command, r hardening.Report) error {
	switch f.output {
	case "json":
		return printJSON(c, r)
	case "yaml":
		data, err := json.Marshal(r)
		if err != nil {
			return err
		}
		var doc map[string]any
		if err := json.Unmarshal(data, &doc); err != nil {
			return err
		}
		if data, err = yaml.Dump(doc); err == nil {
			_, err = c.OutOrStdout().Write(data)
		}
		return err
	}
	w := newTable(c.OutOrStdout(), hardeningColumns()...)
	for _, x := range r.Results {
		if f.all || x.Verdict == hardening.Fail {
			w.row(hardeningRow(x)...)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.OutOrStdout(), "Linux %s for %s: %d ok, %d fail, %d n/a\n", cmp.Or(r.Release, "of an unknown version"), r.Arch, r.OK, r.Failed, r.NotApplicable)
	return err
}

func hardeningColumns() []string {
	return []string{"VERDICT", "KIND", "NAME", "WANT", "FOUND", "REASON"}
}

func hardeningRow(r hardening.Result) []string {
	return []string{string(r.Verdict), string(r.Kind), r.Name, r.Want, r.Found, r.Reason}
}
