package main

import (
	"github.com/spf13/cobra"
)

func (a *app) completionVerb() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "print the completion script of a shell.",
		Long: `idem-tenants completion prints the script that has a shell complete verbs and flags:
bash, zsh, fish or powershell.`,
		Example: `  source <(idem-tenants completion bash)
  idem-tenants completion zsh > "${fpath[1]}/_idem-tenants"
  idem-tenants completion fish > ~/.config/fish/completions/idem-tenants.fish
  idem-tenants completion powershell | Out-String | Invoke-Expression`,
		Annotations:       offline,
		Args:              cobra.ArbitraryArgs,
		ValidArgs:         shells,
		ValidArgsFunction: cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name one shell: bash, zsh, fish or powershell")
			}
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.stdout)
			}
			return usagef("unknown shell %q: name bash, zsh, fish or powershell", args[0])
		},
	}
}
