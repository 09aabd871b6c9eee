package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/kilnhq/kiln/profiles"
)

func newProfile() *cobra.Command {
	c := &cobra.Command{Use: "profile", Short: "List, show and validate profiles"}
	c.AddCommand(newProfileList(), newProfileShow(), newProfileValidate())
	return c
}

func newProfileList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the built-in profiles",
		Args:  args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tFORMAT\tFOR")
			for _, name := range profiles.Names() {
				p, err := profiles.Load(name)
				if err != nil {
					return err
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", name, p.Output.Format, p.Description)
			}
			return w.Flush()
		},
	}
}

func newProfileShow() *cobra.Command {
	var set []string
	c := &cobra.Command{
		Use:       "show PROFILE",
		Short:     "Show a profile with all defaults filled in",
		Long:      "Show a profile as YAML, with what it extends and all defaults filled in. PROFILE\nis a built-in one, a file, or - for standard input.",
		Example:   "  kiln profile show metal >my-profile.yaml\n  kiln profile show kvm --set disk.size=8GiB",
		Args:      args(1, "one profile"),
		ValidArgs: profiles.Names(),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := loadProfile(args[0], set)
			if err != nil {
				return err
			}
			data, err := yaml.Marshal(p)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(data)
			return err
		},
	}
	c.Flags().StringArrayVar(&set, "set", nil, setUsage)
	return c
}

func newProfileValidate() *cobra.Command {
	return &cobra.Command{
		Use:     "validate PROFILE…",
		Short:   "Say what is wrong with profiles",
		Example: "  kiln profile validate my-profile.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, name := range args {
				if _, err := loadProfile(name, nil); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s: valid\n", name)
			}
			return nil
		},
	}
}

const setUsage = "change one value of the profile: KEY=VALUE, for example disk.size=8GiB or kernel.append=[debug] (repeatable)"

// maxProfile bounds a profile on standard input.
const maxProfile = 1 << 20

// loadProfile loads a profile, from standard input if its name is -, and changes
// it.
func loadProfile(name string, set []string) (*profiles.Profile, error) {
	var p *profiles.Profile
	var err error
	if name == "-" {
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(os.Stdin, maxProfile)); err == nil {
			p, err = profiles.Parse("standard input", data)
		}
	} else {
		p, err = profiles.Load(name)
	}
	if err != nil {
		return nil, err
	}
	for _, s := range set {
		if err := p.Set(s); err != nil {
			return nil, err
		}
	}
	if len(set) > 0 {
		if err := p.Validate(); err != nil {
			return nil, fmt.Errorf("profile %s with --set: %w", name, err)
		}
	}
	return p, nil
}
